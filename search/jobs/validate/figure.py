"""The picture of a validation: supernet scores against stand-alone losses."""

from __future__ import annotations

import math
from pathlib import Path

from search.jobs.validate.truth import Truth, tau_text
from search.runs.figures import picture


def save_picture(truth: Truth, path: Path) -> None:
    """A point a placement and supernet, its score against what it came to on its own."""
    with picture(path, 6.5, 5) as figure:
        axis = figure.subplots()
        errors = [truth.trained[placement].standard_error or 0.0 for placement in truth.losses]
        for number, (scores, tau) in enumerate(zip(truth.scores, truth.taus, strict=True)):
            axis.errorbar(
                list(truth.losses.values()),
                [scores[placement] if math.isfinite(scores[placement]) else math.nan for placement in truth.losses],  # left out
                xerr=errors,
                fmt="o",
                markersize=4,
                linewidth=0.7,
                color=f"C{number % 10}",
                label=f"supernet {number}: tau {tau_text(tau)}",
            )
        axis.set_xlabel("stand-alone test loss, nats (mean over seeds)")
        axis.set_ylabel("score by the supernet, higher is better")
        axis.legend(frameon=False)
