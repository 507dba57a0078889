"""A scorer that fails on command, and what tests of the evaluation workers share."""

import os
import time
from itertools import product
from pathlib import Path

import numpy as np

from launch.scoring.shared_tensors import Array, to_tensors
from search.runs.workers import ScorerSpec

PLACEMENTS = list(product("abc", repeat=3))


def workers(**changes):
    return ScorerSpec(**changes)


def values(placements, batches):
    """Numbers that tell placements and batches apart."""
    return {"task": np.array([[ord(p[0]) + ord(p[1]) / 7 + ord(p[2]) / 13 + batch for batch in batches] for p in placements])}


def make_scorer(folder: Path, seconds: float = 0.0):
    """Notes the process that it is made in; a file `raise` there makes it do so at one placement, always or `once`, and a file
    `last` makes that one last.
    """
    with (folder / "processes").open("a") as file:
        file.write(f"{os.getpid()}\n")

    def score(placements, batches):
        with (folder / "scored").open("a") as file:
            file.write("".join("".join(placement) + "\n" for placement in placements))
        time.sleep(seconds)
        if ("b", "b", "b") in placements and (folder / "last").exists():
            time.sleep(1000)
        if ("b", "b", "b") in placements and (folder / "raise").exists():
            if (folder / "raise").read_text() == "once":
                (folder / "raise").unlink()
            raise RuntimeError("no memory for this one")
        return values(placements, batches)

    return score


def make_late(folder: Path, arrays: dict[str, Array]):
    """Every process but the first waits for a file `start` there; notes what memory the arrays lie in."""
    score = make_scorer(folder)
    while len(processes(folder)) > 1 and not (folder / "start").exists():
        time.sleep(0.02)
    with (folder / "memory").open("a") as file:
        file.write(f"{backing(to_tensors(arrays)['weight'].data_ptr())}\n")
    return score


def backing(address: int) -> str:
    """What a process has mapped at an address; only Linux tells."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else []:
        start, end = (int(limit, 16) for limit in line.split()[0].split("-"))
        if start <= address < end:
            return " ".join(line.split()[5:])
    return "unknown"


def processes(folder: Path) -> list[int]:
    """Those that a scorer was made in, in order."""
    path = folder / "processes"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
