"""A scorer that fails on command, and what tests of the evaluation workers share."""

import os
import time
from itertools import product
from pathlib import Path

import numpy as np

from search.runs.workers import ScorerSpec

PLACEMENTS = list(product("abc", repeat=3))


def workers(**changes):
    return ScorerSpec(**changes)


def values(placements, batches):
    """Numbers that tell placements and batches apart."""
    return {"task": np.array([[ord(p[0]) + ord(p[1]) / 7 + ord(p[2]) / 13 + batch for batch in batches] for p in placements])}


def make_scorer(folder: Path, seconds: float = 0.0):
    """Notes the process that it is made in; a file `raise` there makes it do so at one placement, always or `once`."""
    with (folder / "processes").open("a") as file:
        file.write(f"{os.getpid()}\n")

    def score(placements, batches):
        with (folder / "scored").open("a") as file:
            file.write("".join("".join(placement) + "\n" for placement in placements))
        time.sleep(seconds)
        if ("b", "b", "b") in placements and (folder / "raise").exists():
            if (folder / "raise").read_text() == "once":
                (folder / "raise").unlink()
            raise RuntimeError("no memory for this one")
        return values(placements, batches)

    return score


def make_late(folder: Path):
    """Every process but the first takes its time to start."""
    score = make_scorer(folder)
    time.sleep(4 * (len(processes(folder)) - 1))
    return score


def processes(folder: Path) -> list[int]:
    """Those that a scorer was made in, in order."""
    path = folder / "processes"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
