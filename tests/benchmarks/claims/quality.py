"""What growth comes to: C6, quality against compute; C7, local losses; C8, joint tuning at the end."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from search.local_losses import ExitEvaluation, LocalUnits
from search.progressive.weights import load_rack
from tests.benchmarks.claims.findings import Claim, Finding, differences, excess, falls, mean, share_recovered, table, text_of
from tests.benchmarks.claims.operations import COUNTED, operations
from tests.benchmarks.claims.runs import Run, Runs, batches_of

GRID = 40


def changes_of(runs: Runs) -> dict[str, dict[str, Any]]:
    """Ways to the same final depth in the same number of steps; what is tuned jointly has a quarter more."""
    n_stacks, n_all = runs.size.n_stacks, runs.size.n_steps * runs.size.n_stacks
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
    return runs.seeds(name.replace(", ", "-").replace(" ", "-"), **changes_of(runs)[name])


def shallow(runs: Runs, name: str, cost: float) -> list[Run]:
    """One stack trained end to end for as many operations as something else."""
    per_step = sum(operations(runs.spec(growth={"target_stacks": 1, "stage_steps": 1})))
    return runs.seeds(name, growth={"target_stacks": 1, "stage_steps": max(round(cost / per_step), 1)})


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
    for name in ("growth, frozen", "end to end"):
        label = f"one stack at the cost of {name}"
        found[label] = numbers_of(shallow(runs, label.replace(", ", "-").replace(" ", "-"), found[name]["operations"]))
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
    full, frozen, e2e = "growth, full", "growth, frozen", "end to end"
    shallow_name = f"one stack at the cost of {frozen}"
    share = numbers[full]["operations"] / numbers[e2e]["operations"]
    stages = [mean(each) for each in zip(*numbers[frozen]["stages"], strict=True)]
    behind = differences(loss[frozen], loss[shallow_name])
    between = mean(loss[full]) <= mean(loss["growth, qlora"]) <= mean(loss[frozen])
    order = "; ".join(f"{name} {text_of(loss[name])}" for name in (full, "growth, qlora", frozen))
    return [
        Finding("Growth with a trunk that trains on saves compute", "final held-out loss over end to end's, at its share of operations",
                f"{excess(loss[full], loss[e2e]):+.2%} at {share:.0%}", "at most +1 % at <= 75 %",
                excess(loss[full], loss[e2e]) <= 0.01 and share <= 0.75),
        Finding("Adapters in the trunk are between full and frozen", "final held-out loss", order, "full <= qlora <= frozen", between),
        Finding("A frozen trunk gains with every stage", "held-out loss after each stage", ", ".join(f"{each:.4f}" for each in stages),
                "falls", falls(stages)),
        Finding("Frozen growth beats one stack of equal cost", "final held-out loss less that of the shallow control, seed by seed",
                text_of(behind, "+.4f"), "below 0", mean(behind) < 0),
    ]  # fmt: skip


def tables_quality(numbers):
    rows = [
        [name, f"{found['steps']}", text_of(found["loss"]), f"{found['operations']:.2e}", text_of(found["seconds"], ".1f"),
         "" if name == "end to end" else ahead_of(numbers, name)]
        for name, found in numbers.items()
    ]  # fmt: skip
    titles = ["run", "steps", "held-out loss", "operations", "seconds", "ahead of end to end at equal operations"]
    return f"{table(titles, rows)}\n{COUNTED}\n"


def measure_local(runs: Runs):
    found = {name: trained(runs, name) for name in ("end to end", "blockwise", "blockwise, tail")}
    exits = {name: [_exits(run) for run in found[name]] for name in ("blockwise", "blockwise, tail")}
    return {"loss": {name: [run.loss for run in each] for name, each in found.items()}, "exits": exits}


def _exits(run: Run) -> list[float]:
    """Held-out loss of the exit behind each unit."""
    units = LocalUnits(load_rack(run.out), run.spec.local_loss, unit="block")
    batches = batches_of(run.spec).evaluation(run.spec.n_eval_batches, run.spec.eval_batch_size)
    scores = ExitEvaluation(units, batches).score()
    return [float(scores[f"loss.{unit.name}"]) for unit in units.units]


def judge_local(numbers):
    e2e, local, tail = (mean(numbers["loss"][name]) for name in ("end to end", "blockwise", "blockwise, tail"))
    exits = [mean(each) for each in zip(*numbers["exits"]["blockwise"], strict=True)]
    closed = share_recovered(local, e2e, tail)
    gap = text_of(differences(numbers["loss"]["blockwise"], numbers["loss"]["end to end"]), "+.4f")
    return [
        Finding("Local losses: every block adds", "held-out loss at each exit (blockwise, simultaneous, shared unembedding)",
                ", ".join(f"{each:.4f}" for each in exits), "falls", falls(exits)),
        Finding("A tail closes the gap of local losses", "final held-out loss over end to end's; share of it that `tail` closes",
                f"gap {gap}; closed {closed:.0%}", "closed >= 50 %", closed >= 0.5),
    ]  # fmt: skip


def measure_joint(runs: Runs):
    found = {name: trained(runs, name) for name in ("end to end", "growth, frozen", "growth, frozen, joint")}
    steps = {name: sum(row["steps"] for row in each[0].stages) for name, each in found.items()}
    return {"loss": {name: [run.loss for run in each] for name, each in found.items()}, "steps": steps}


def judge_joint(numbers):
    e2e, frozen, joint = (mean(numbers["loss"][name]) for name in ("end to end", "growth, frozen", "growth, frozen, joint"))
    recovered = share_recovered(frozen, e2e, joint)
    more = numbers["steps"]["growth, frozen, joint"] / numbers["steps"]["growth, frozen"] - 1
    figure = f"{frozen:.4f} -> {joint:.4f}, end to end {e2e:.4f}: {recovered:.0%} with {more:.0%} more steps"
    measured = "share of the gap between frozen growth and end to end that joint steps close"
    return [Finding("Joint tuning recovers", measured, figure, ">= 50 %", recovered >= 0.5)]


C6 = Claim("Quality against compute", measure_quality, judge_quality, tables_quality)
C7 = Claim("Local-loss blockwise works", measure_local, judge_local)
C8 = Claim("Joint tuning recovers", measure_joint, judge_joint)
