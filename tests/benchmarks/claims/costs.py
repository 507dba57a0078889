"""What growth costs: C2, saved activations; C3, step time; C5, the weights of a trunk in few bits."""

import statistics
import time

import torch

from models.adapters import is_adapter
from models.quantised import memory_bytes
from search import checkpoint
from search.member import Member
from search.parallel import Ranks
from search.progressive.evaluation import saved_bytes
from search.progressive.plan import first_stage, next_stage
from search.progressive.running import Growing
from search.progressive.stages import MOMENTS
from search.progressive.step import GrowthStep
from search.progressive.weights import load_rack, stage_folder
from search.training import train
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
    model = Growing(stage.rack.build(spec.seed), uses_keep=False, has_trunk=True).train()
    batch = batches_of(spec)[0]
    with torch.no_grad():
        hidden = model.below(batch, model.frontier) if model.frontier else None
    return saved_bytes(model, batch, hidden)


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


def no_metrics(pack, members):
    """Stands for the evaluation."""
    return {name: torch.zeros(len(members)) for name in ("accuracy", "loss")}


N_TIMED = 5


def measure_steps(runs: Runs):
    shallow, deep = 2, max(runs.size.depths)
    work = {(depth, cached): _stepper(runs, depth, cached=cached) for depth in (shallow, deep) for cached in (True, False)}
    for steps in work.values():
        steps()
    rounds = [{key: _seconds(steps) for key, steps in work.items()} for _ in range(runs.size.rounds)]
    ratios = {
        name: sorted(each[deep, cached] / each[shallow, cached] for each in rounds)
        for name, cached in (("cached", True), ("recomputed", False))
    }
    return {"shallow": shallow, "deep": deep, "ratios": ratios}


def _stepper(runs: Runs, depth: int, *, cached: bool):
    """What takes some steps of the stage in which a rack gets its last stack."""
    spec = runs.spec(
        rack={"stacks": [stack(runs.size.d_model)] * (depth - 1)},
        data={"n_train": N_TIMED * runs.size.batch_size},
        growth={"target_stacks": depth, "max_stacks": depth, "cache_activations": cached},
        n_eval_batches=1,
    )
    run = runs.grown(spec)
    gradients = GrowthStep(
        spec, Ranks(), lambda batch: run.cache.hidden(batch) if run.cache else None, denoises=False, scales_loss=False
    )

    def steps():
        member = Member(run.model, run.batches, spec.lr, spec.weight_decay, keeps_best=False)
        train([member], spec.train, n_steps=N_TIMED, eval_every=N_TIMED, evaluate=no_metrics, gradients=gradients)

    return steps


def _seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def judge_steps(numbers):
    ratios = {name: statistics.median(found) for name, found in numbers["ratios"].items()}
    figure = "; ".join(
        f"{name} {ratios[name]:.2f} ({found[0]:.2f} to {found[-1]:.2f})" for name, found in numbers["ratios"].items()
    )
    measured = f"step time at depth {numbers['deep']} / depth {numbers['shallow']}, frozen append, in turn in one run; median"
    claim = "Step time does not grow with depth where the trunk is cached"
    return [Finding(claim, measured, figure, "cached: at most 1.1", ratios["cached"] <= 1.1)]


LIMIT = 0.30


def measure_trunk(runs: Runs):
    ratios = {str(width): _stored_ratio(runs, width) for width in runs.size.widths}
    n_steps = max(runs.size.n_steps // 10, 1)
    growth = {"target_stacks": 3, "trunk_strategy": "qlora", "stage_steps": n_steps}
    run = runs.run("qlora-trunk", growth=growth)
    earlier, later = (load_rack(run.out, n_stages=n_stages).state_dict() for n_stages in (2, 3))
    trunk = [name for name in earlier if name.startswith("stacks.0.")]
    moments, _ = checkpoint.load(stage_folder(run.out, 2) / MOMENTS, torch.device("cpu"))
    held = {name.partition("|")[0] for name in moments}
    return {
        "ratios": ratios,
        "lowest_gradient": _lowest_gradient(runs, run),
        "base_changed": [name for name in trunk if not is_adapter(name) and not torch.equal(earlier[name], later[name])],
        "adapters_changed": sum(is_adapter(name) and not torch.equal(earlier[name], later[name]) for name in trunk),
        "trunk_moments_of_others": sorted(
            name for name in held if name.startswith(("stacks.0.", "stacks.1.")) and not is_adapter(name)
        ),
        "trunk_moments_of_adapters": sum(name.startswith(("stacks.0.", "stacks.1.")) and is_adapter(name) for name in held),
    }


def _stored_ratio(runs: Runs, width: int):
    growth = {"target_stacks": 2, "trunk_strategy": "qlora", "progressive_qlora_rank": 8}
    spec = runs.spec(rack={"d_model": width, "stacks": [stack(width)]}, growth=growth)
    first = first_stage(spec)
    trunk = next_stage(spec, first).rack.build(spec.seed).stacks[0]
    n_numbers = sum(each.numel() for each in first.rack.build(spec.seed).stacks[0].parameters())
    return memory_bytes(trunk) / (2 * n_numbers)


def _lowest_gradient(runs: Runs, run):
    """The norm of the gradients of the lowest stack's adapters, after a pass without gradients."""
    model, batch = Growing(load_rack(run.out), uses_keep=False), batches_of(run.spec)[0]
    with torch.no_grad():
        model(batch)
    model.train()
    step = GrowthStep(run.spec, Ranks(), lambda _: None, denoises=False, scales_loss=False)
    member = Member(model, [batch], run.spec.lr, 0.0)
    step(None, [member], 0)
    found = [each.grad for name, each in model.rack.stacks[0].named_parameters() if is_adapter(name) and each.grad is not None]
    return sum(float(each.square().sum()) for each in found) ** 0.5


def judge_trunk(numbers):
    claim = "A QLoRA trunk is small, and learns"
    ratios = numbers["ratios"]
    figure = ", ".join(f"{ratio:.3f} at {width}" for width, ratio in ratios.items())
    learns = numbers["lowest_gradient"] > 0 and numbers["adapters_changed"] > 0 and not numbers["base_changed"]
    told = (
        f"gradient norm {numbers['lowest_gradient']:.1e}; {len(numbers['base_changed'])} tensors of the base changed; moments of "
        f"{numbers['trunk_moments_of_adapters']} adapter tensors and {len(numbers['trunk_moments_of_others'])} others"
    )
    return [
        Finding(claim, "bytes of a trunk stack, adapters of rank 8 included, / bf16; by d_model", figure,
                f"at most {LIMIT} at the largest", list(ratios.values())[-1] <= LIMIT),
        Finding(claim, "lowest adapter after a pass without gradients; base before and after a stage; optimizer", told,
                "norm > 0, base the same bits, moments of adapters alone", learns and not numbers["trunk_moments_of_others"]),
    ]  # fmt: skip


C2 = Claim("Frozen append: activation memory independent of depth", measure_saved, judge_saved)
C3 = Claim("Step time independent of depth with cache", measure_steps, judge_steps)
C5 = Claim("QLoRA trunk memory", measure_trunk, judge_trunk)
