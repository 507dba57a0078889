"""The picture of a growth: the losses over all steps, and what a step costs in each stage."""

import json
from itertools import accumulate
from pathlib import Path

from configs.records import Row
from search.jobs.progressive.weights import stage_folder
from search.runs.figures import picture
from search.runs.report import HISTORY

PICTURE = "growth.png"


def save_picture(results: Row, out: Path) -> None:
    """Draw it as `growth.png` in the run's folder."""
    stages = results["stages"]
    firsts = [0, *accumulate(row["steps"] for row in stages)]
    names = [f"{row['stacks']}" if row["kind"] != "joint" else "joint" for row in stages]
    with picture(out / PICTURE, 9, 3.2) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(2.2, 1, 1))
        for row, first in zip(stages, firsts, strict=False):
            lines = (stage_folder(out, row["stage"] - 1) / HISTORY).read_text(encoding="utf-8").splitlines()
            history = [json.loads(line) for line in lines]
            steps = [first + each["step"] for each in history]
            left.plot(
                steps, [each["train_loss"] for each in history], color="0.7", label="training" if row is stages[0] else None
            )
            held_out = [*zip(steps, (each["loss"] for each in history), strict=True)]
            if row["loss_before"] is not None:  # a rack that knows nothing yet would press all else flat
                held_out.insert(0, (first, row["loss_grown"]))
            left.plot(*zip(*held_out, strict=True), color="C0", marker=".", label="held out" if row is stages[0] else None)
            left.axvline(first, color="0.85", linewidth=0.8, zorder=0)
        left.set(xlabel="steps", ylabel="loss (nats)", title="a line for each stack that is added")
        left.legend(frameon=False)
        middle.bar(names, [row["step_ms"] or 0 for row in stages], color="C0")
        middle.set(xlabel="stacks", title="time of a step (ms)")
        right.bar(names, [(row["saved_bytes"] or 0) / 2**20 for row in stages], color="C1")
        right.set(xlabel="stacks", title="kept for backward (MiB)")
