"""Opens a matplotlib figure, and saves it as a PNG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.storage import whole_file
from search.runs.interruption import interruptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of some inches to draw on, written whole or not at all when the block ends.

    Ctrl-C waits for it: inside matplotlib's compiled parts it would come out as some other error.
    """
    # Here, so that `check` and `show`, which draw nothing, do not wait for it.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.use("agg")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        with interruptions() as is_interrupted:
            yield figure
            with whole_file(path) as unfinished:
                figure.savefig(unfinished, dpi=130, format="png")
        if is_interrupted():
            raise KeyboardInterrupt
