"""Floating-point operations of a run, counted from the specs of its stages by `models.assembly.cost`.

Of a training step: what trains counts its forward pass three times (forward, gradient of inputs, gradient of weights); what
stands still above the frontier, twice, for gradients pass it; what is below, once. With a cache that is once a cached row
instead, and of each stage's trunk only what the stage before had not cached yet. Held-out evaluation is not counted.
"""

from models import Rack, RackSpec
from models.assembly.assemble import without_memory
from models.assembly.cost import cost
from models.linears.adapters import is_adapter
from models.spec.parameters import LoraSpec
from search.jobs.progressive.plan import Stage, first_stage, next_stage
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.training.growing_model import find_frontier

COUNTED = (
    "Operations: 3 forward passes a step of what trains, 2 of what stands still above it, 1 of what is below; "
    "with a cache that 1 is once a cached row, of what is new in the trunk. Held-out evaluation is not counted."
)


def stages_of(spec: ProgressiveSpec) -> list[Stage]:
    stages = [first_stage(spec)]
    while len(stages) < spec.n_stages:
        stages.append(next_stage(spec, stages[-1]))
    return stages


def operations(spec: ProgressiveSpec) -> list[float]:
    """Of each stage."""
    seq_len = spec.data.instance().input_length
    n_rows = spec.data.samples(spec.seed).n_samples("train")
    return [_of_stage(spec, stage, seq_len, n_rows) for stage in stages_of(spec)]


def _of_stage(spec: ProgressiveSpec, stage: Stage, seq_len: int, n_rows: int) -> float:
    rack = without_memory(stage.rack)
    frontier, n_tokens = find_frontier(rack), stage.n_steps * spec.data.batch_size * seq_len
    bare, _ = _forward(_without_adapters(stage.rack), seq_len)
    full, head = _forward(stage.rack, seq_len)
    below = n_tokens * sum(full[:frontier])
    if spec.growth.cache_activations is not False:
        n_supervised = min(n_rows, stage.n_steps * spec.data.batch_size)
        below = n_supervised * seq_len * sum(full[max(frontier - 1, 0) : frontier])
    above = sum(_passes(rack, index, adapters=False) * bare[index] for index in range(frontier, len(full)))
    above += sum(_passes(rack, index, adapters=True) * (full[index] - bare[index]) for index in range(frontier, len(full)))
    n_heads, tails = 1, 0.0
    if spec.training_architecture != "rackwise":  # of stacks of one block, blocks and stacks are the same units
        n_heads = len(full)
        tails = 3 * (n_heads - 1) * full[-1] if spec.local_loss.head == "tail" else 0.0
    trains_head = any(parameter.requires_grad for parameter in rack.head.parameters())
    return below + n_tokens * (above + tails + n_heads * (3 if trains_head else 2) * head)


def _forward(rack: RackSpec, seq_len: int) -> tuple[list[float], float]:
    """Operations a token of each stack, and of the head."""
    stacks, head = [0.0] * len(rack.stacks), 0.0
    for part in cost(rack, seq_len).parts:
        if part.path.startswith("stacks["):
            stacks[int(part.path[len("stacks[") : part.path.index("]")])] += part.flops
        else:
            head += part.flops
    return stacks, head


def _without_adapters(rack: RackSpec) -> RackSpec:
    none = {"lora": LoraSpec(apply=False).to_dict(), "progressive_lora": None}
    return RackSpec.model_validate({**rack.to_dict(), "stacks": [{**stack.to_dict(), **none} for stack in rack.stacks]})


def _passes(rack: Rack, index: int, *, adapters: bool) -> int:
    parts = [each for name, each in rack.stacks[index].named_parameters() if is_adapter(name) == adapters]
    return 3 if any(each.requires_grad for each in parts) else 2
