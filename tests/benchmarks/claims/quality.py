"""What growth comes to: C6, quality against compute."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from tests.benchmarks.claims.findings import (
    Claim,
    Finding,
    differences,
    excess,
    falls,
    mean,
    table,
    text_of,
)
from tests.benchmarks.claims.operations import COUNTED, operations
from tests.benchmarks.claims.runs import Run, Runs

GRID = 40
BUDGET = 0.75
FULL, LONGER, FROZEN = "growth, full", "growth, full, longer", "growth, frozen"
SHALLOW = "one stack at the cost of {}"


def changes_of(runs: Runs) -> dict[str, dict[str, Any]]:
    """Ways to the same final depth in the same number of steps; what is tuned jointly has a quarter more."""
    n_all = runs.size.n_steps * runs.size.n_stacks
    at_once = {"enabled": False, "stage_steps": n_all}
    return {
        "end to end": {"growth": at_once},
        "growth, full": {"growth": {"trunk_strategy": "full", "init": "copy_last"}},
        "growth, qlora": {"growth": {"trunk_strategy": "qlora"}},
        "growth, frozen": {},
        "growth, frozen, joint": {"growth": {"joint_tuning_steps": max(n_all // 4, 1)}},
        "blockwise": {"growth": at_once, "training_architecture": "blockwise"},
        "blockwise, tail": {"growth": at_once, "training_architecture": "blockwise", "local_loss": {"head": "tail"}},
    }


def trained(runs: Runs, name: str) -> list[Run]:
    return runs.seeds(name, **changes_of(runs)[name])


def shallow(runs: Runs, name: str, cost: float) -> list[Run]:
    """One stack trained end to end for as many operations as something else."""
    per_step = sum(operations(runs.spec(growth={"target_stacks": 1, "stage_steps": 1})))
    return runs.seeds(name, growth={"target_stacks": 1, "stage_steps": max(round(cost / per_step), 1)})


def _longer(runs: Runs) -> list[Run]:
    """Growth whose last stage is as long as a budget allows, a share of the operations of end to end."""
    changes, size = changes_of(runs), runs.size
    *earlier, last = operations(runs.spec(**changes[FULL]))
    whole = sum(operations(runs.spec(**changes["end to end"])))
    n_last = max(int((BUDGET * whole - sum(earlier)) / last * size.n_steps), 1)
    growth = changes[FULL]["growth"] | {"stage_steps": (size.n_steps,) * (size.n_stacks - 1) + (n_last,)}
    return runs.seeds(LONGER, growth=growth)


def numbers_of(found: Sequence[Run]) -> dict[str, Any]:
    """Of the seeds of a run: losses, operations, seconds; and the loss (mean over seeds) by operations."""
    by_stage = operations(found[0].spec)
    curve = []
    for index, (before, of_stage) in enumerate(zip([0.0, *accumulate(by_stage)], by_stage, strict=False)):
        for rows in zip(*(run.history(index) for run in found), strict=True):
            done = rows[0]["step"] / found[0].stages[index]["steps"]
            curve.append([before + of_stage * done, mean([row["loss"] for row in rows])])
    return {
        "loss": [run.loss for run in found],
        "stages": [[row["loss"] for row in run.stages] for run in found],
        "operations": sum(by_stage),
        "seconds": [run.seconds for run in found],
        "steps": sum(row["steps"] for row in found[0].stages),
        "curve": curve,
    }


def measure_quality(runs: Runs):
    names = [name for name in changes_of(runs) if name != "blockwise, tail"]
    found = {name: numbers_of(trained(runs, name)) for name in names}
    found[LONGER] = numbers_of(_longer(runs))
    for name in (FROZEN, "end to end"):
        label = SHALLOW.format(name)
        found[label] = numbers_of(shallow(runs, label, found[name]["operations"]))
    return found


def ahead_of(numbers, name: str) -> str:
    """Where a curve is below that of end to end, on a grid of operations that both have come to."""
    first, second = (np.array(numbers[each]["curve"]).T for each in (name, "end to end"))
    grid = np.linspace(max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1]), GRID)
    is_ahead = np.interp(grid, *first) < np.interp(grid, *second)
    if not is_ahead.any():
        return "nowhere"
    return "everywhere" if is_ahead.all() else f"{is_ahead.mean():.0%}, last at {grid[is_ahead][-1]:.2e}"


def judge_quality(numbers):
    loss = {name: found["loss"] for name, found in numbers.items()}
    stages = [mean(each) for each in zip(*numbers[FROZEN]["stages"], strict=True)]
    behind = differences(loss[FROZEN], loss[SHALLOW.format(FROZEN)])
    between = mean(loss[FULL]) <= mean(loss["growth, qlora"]) <= mean(loss[FROZEN])
    order = "; ".join(f"{name} {text_of(loss[name])}" for name in (FULL, "growth, qlora", FROZEN))
    return [
        *(_saving(numbers, name) for name in (FULL, LONGER)),
        Finding("Adapters in the trunk are between full and frozen", "final held-out loss", order, "full <= qlora <= frozen",
                between),
        Finding("A frozen trunk gains with every stage", "held-out loss after each stage",
                ", ".join(f"{each:.4f}" for each in stages), "falls", falls(stages)),
        Finding("Frozen growth beats one stack of equal cost",
                "final held-out loss less that of the shallow control, seed by seed", text_of(behind, "+.4f"), "below 0",
                mean(behind) < 0),
    ]  # fmt: skip


def _saving(numbers, name: str) -> Finding:
    """Whether growth comes to the loss of end to end at less than its operations."""
    whole = numbers["end to end"]
    above, share = excess(numbers[name]["loss"], whole["loss"]), numbers[name]["operations"] / whole["operations"]
    more = text_of(differences(numbers[name]["loss"], whole["loss"]), "+.4f")
    return Finding(
        "Growth with a trunk that trains on saves compute",
        f"final held-out loss over that of end to end, at its share of operations ({name})",
        f"{above:+.2%} ({more}) at {share:.0%}",
        f"at most +1 % at <= {BUDGET:.0%}",
        above <= 0.01 and share <= BUDGET,
    )


CURVES = "Who is ahead is told by the runs as they were: end to end's rate has not fallen yet where growth, cheaper, ends."


def tables_quality(numbers):
    rows = [
        [name, f"{found['steps']}", text_of(found["loss"]), f"{found['operations']:.2e}", text_of(found["seconds"], ".1f"),
         "" if name == "end to end" else ahead_of(numbers, name)]
        for name, found in numbers.items()
    ]  # fmt: skip
    titles = ["run", "steps", "held-out loss", "operations", "seconds", "ahead of end to end at equal operations"]
    return f"{table(titles, rows)}\n{COUNTED} {CURVES}\n"


C6 = Claim("Quality against compute", measure_quality, judge_quality, tables_quality)
