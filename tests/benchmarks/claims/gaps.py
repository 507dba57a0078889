"""How far other ways are from end to end: C7, local losses; C8, a frozen trunk with joint tuning at the end."""

from search.jobs.progressive.weights import load_rack
from search.training.local_losses.evaluation import ExitEvaluation
from search.training.local_losses.model import LocalUnits
from tests.benchmarks.claims.findings import (
    Claim,
    Finding,
    differences,
    falls,
    mean,
    share_recovered,
    standard_error,
    text_of,
)
from tests.benchmarks.claims.quality import trained
from tests.benchmarks.claims.runs import Run, Runs, batches_of


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
    gap = differences(numbers["loss"]["blockwise"], numbers["loss"]["end to end"])
    has_gap = mean(gap) > (0 if len(gap) == 1 else 2 * standard_error(gap))
    told = f"closed {closed:.0%}" if has_gap else f"none to close; tail {tail - e2e:+.4f}"
    return [
        Finding("Local losses: every block adds", "held-out loss at each exit (blockwise, simultaneous, shared unembedding)",
                ", ".join(f"{each:.4f}" for each in exits), "falls", falls(exits)),
        Finding("A tail closes the gap of local losses", "final held-out loss over end to end's; share of it that `tail` closes",
                f"gap {text_of(gap, '+.4f')}; {told}", "closed >= 50 %, of a gap of over 2 standard errors",
                closed >= 0.5 if has_gap else None),
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


C7 = Claim("Local-loss blockwise works", measure_local, judge_local)
C8 = Claim("Joint tuning recovers", measure_joint, judge_joint)
