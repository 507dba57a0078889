"""A trunk of NF4 weights with adapters: C5, what it takes in memory, and what of it learns."""

import torch

from models.assembly.quantise import memory_bytes
from models.linears.adapters import is_adapter
from search.jobs.progressive.plan import first_stage, next_stage
from search.jobs.progressive.stages import MOMENTS
from search.jobs.progressive.training.gradients import GrowthStep
from search.jobs.progressive.training.growing_model import GrowingRack
from search.jobs.progressive.weights import load_rack, stage_folder
from search.training import checkpoint
from search.training.ranks import Ranks
from search.training.state import TrainState
from tests.benchmarks.claims.findings import Claim, Finding
from tests.benchmarks.claims.runs import Run, Runs, batches_of, stack

LIMIT = 0.30


def measure_trunk(runs: Runs):
    ratios = {str(width): _stored_ratio(runs, width) for width in runs.size.widths}
    n_steps = max(runs.size.n_steps // 10, 1)
    growth = {"target_stacks": 3, "trunk_strategy": "qlora", "stage_steps": n_steps}
    run = runs.run("qlora-trunk", growth=growth)
    earlier, later = (load_rack(run.out, n_stages=n_stages).state_dict() for n_stages in (2, 3))
    trunk = [name for name in earlier if name.startswith("stacks.0.")]
    moments, _ = checkpoint.read(stage_folder(run.out, 2) / MOMENTS, torch.device("cpu"))
    held = {name.partition("|")[0] for name in moments}
    return {
        "ratios": ratios,
        "lowest_gradient": _lowest_gradient(run),
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


def _lowest_gradient(run: Run):
    """The norm of the gradients of the lowest stack's adapters, after a pass without gradients."""
    model, batch = GrowingRack(load_rack(run.out), uses_attention_mask=False), batches_of(run.spec)[0]
    with torch.no_grad():
        model(batch)
    model.train()
    step = GrowthStep(run.spec, Ranks(), lambda _: None, denoises=False, scales_loss=False)
    member = TrainState(model, [batch], run.spec.lr, 0.0)
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


C5 = Claim("QLoRA trunk memory", measure_trunk, judge_trunk)
