"""What growth costs: C2, saved activations; C3, step time."""

import statistics
import time

import torch

from search.jobs.progressive.training.gradients import GrowthStep
from search.jobs.progressive.training.growing_model import GrowingRack
from search.profiling.saved_bytes import SavedBytes
from search.training.loop import train
from search.training.metrics import weighted_loss
from search.training.ranks import Ranks
from search.training.state import TrainState
from tests.benchmarks.claims.findings import Claim, Finding
from tests.benchmarks.claims.operations import stages_of
from tests.benchmarks.claims.runs import Runs, batches_of, stack

STRATEGIES = {
    "end to end": {"enabled": False},
    "append, frozen": {},
    "append, qlora": {"trunk_strategy": "qlora"},
    "prepend, frozen": {"building_mode": "prepend"},
}
FLAT = 0.05


def measure_saved(runs: Runs):
    saved = {name: [_saved(runs, depth, growth) for depth in runs.size.depths] for name, growth in STRATEGIES.items()}
    return {"depths": list(runs.size.depths), "saved_bytes": saved}


def _saved(runs: Runs, depth: int, growth):
    trunk = {"stacks": [stack(runs.size.d_model)] * max(depth - 1, 1)}
    spec = runs.spec(rack=trunk, growth={"target_stacks": depth, "max_stacks": max(runs.size.depths), **growth})
    stage = stages_of(spec)[-1]
    model = GrowingRack(stage.rack.build(spec.seed), uses_attention_mask=False, has_trunk=True).train()
    batch = batches_of(spec)[0]
    with torch.no_grad():
        hidden = model.below(batch, model.frontier) if model.frontier else None
    with SavedBytes(model) as saved:
        weighted_loss(model(batch, hidden), batch.targets, batch.weights).backward()
    return saved.peak


def judge_saved(numbers):
    depths = "/".join(map(str, numbers["depths"]))
    figure = "; ".join(
        f"{name} {'/'.join(f'{each / 2**20:.1f}' for each in found)}" for name, found in numbers["saved_bytes"].items()
    )
    flat = numbers["saved_bytes"]["append, frozen"]
    measured = f"MiB saved for the backward pass at depth {depths}, counted by hooks"
    claim = "Frozen append: activation memory does not grow with depth"
    return [
        Finding(claim, measured, figure, "append, frozen: largest / smallest at most 1.05", max(flat) / min(flat) <= 1 + FLAT),
        Finding(claim, "on a GPU, slope of `max_memory_allocated` per trunk stack", "", "stored weight bytes + 5 %", None),
    ]


def no_metrics(_, members):
    """Stands for the evaluation."""
    return {name: torch.zeros(len(members)) for name in ("accuracy", "loss")}


N_TIMED = 10
LARGER = 4
"""Times the usual batch: what Python does for every part of a rack, whatever it computes, weighs less there."""


def measure_steps(runs: Runs):
    depths = shallow, deep = 2, max(runs.size.depths)
    sizes = {"cached": runs.size.batch_size, "cached, larger": LARGER * runs.size.batch_size, "recomputed": runs.size.batch_size}
    work = {
        (name, depth): _stepper(runs, depth, rows, cached=name != "recomputed")
        for name, rows in sizes.items()
        for depth in depths
    }
    for steps in work.values():
        steps()
    rounds = [{key: _seconds(steps) for key, steps in work.items()} for _ in range(runs.size.rounds)]
    ratios = {name: sorted(each[name, deep] / each[name, shallow] for each in rounds) for name in sizes}
    milliseconds = {name: 1000 * statistics.median(each[name, shallow] for each in rounds) / N_TIMED for name in sizes}
    return {"shallow": shallow, "deep": deep, "rows": sizes, "ratios": ratios, "milliseconds": milliseconds}


def _stepper(runs: Runs, depth: int, n_rows: int, *, cached: bool):
    """What takes some steps of the stage in which a rack gets its last stack."""
    spec = runs.spec(
        rack={"stacks": [stack(runs.size.d_model)] * (depth - 1)},
        data={"n_train": n_rows, "batch_size": n_rows},
        growth={"target_stacks": depth, "max_stacks": depth, "cache_activations": cached},
        n_eval_batches=1,
    )
    run = runs.grown(spec)
    gradients = GrowthStep(
        spec, Ranks(), lambda batch: run.cache.hidden(batch) if run.cache else None, denoises=False, scales_loss=False
    )

    def steps():
        member = TrainState(run.model, run.batches, spec.lr, spec.weight_decay, keeps_best=False)
        train([member], spec.train, n_steps=N_TIMED, eval_every=N_TIMED, evaluate=no_metrics, gradients=gradients)

    return steps


def _seconds(work):
    """Of the processor, for this one thread: what else runs on the machine counts little."""
    started = time.process_time()
    work()
    return time.process_time() - started


def judge_steps(numbers):
    deep, shallow = numbers["deep"], numbers["shallow"]
    ratios = {name: statistics.median(found) for name, found in numbers["ratios"].items()}
    findings = []
    for name in ("cached", "cached, larger"):
        others = [name, "recomputed"] if name == "cached" else [name]
        figure = "; ".join(
            f"{each} {ratios[each]:.2f} ({numbers['ratios'][each][0]:.2f} to {numbers['ratios'][each][-1]:.2f})"
            for each in others
        )
        measured = (
            f"step time at depth {deep} / depth {shallow}, frozen append, batches of {numbers['rows'][name]} "
            f"({numbers['milliseconds'][name]:.0f} ms at depth {shallow}), in turn in one run; median"
        )
        claim = "Step time does not grow with depth where the trunk is cached"
        findings.append(Finding(claim, measured, figure, "cached: at most 1.1", ratios[name] <= 1.1))
    return findings


C2 = Claim("Frozen append: activation memory independent of depth", measure_saved, judge_saved)
C3 = Claim("Step time independent of depth with cache", measure_steps, judge_steps)
