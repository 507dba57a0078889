"""Says which adapters of a stage take memory and never learn."""

from collections.abc import Iterable, Iterator

from models import Rack
from models.growth.edit_spec import stack_uids
from search.jobs.progressive.plan import Stage
from search.jobs.progressive.spec import ProgressiveSpec


def idle_notes(spec: ProgressiveSpec, stage: Stage, rack: Rack) -> Iterator[str]:
    """Of the stacks that are new, and of the trunk: adapters that are zero from the start, and stay so to the end of the run."""
    growth = spec.growth
    tunes_adapters = growth.joint_tuning_steps and growth.fine_tune_mode == "adapters"
    if tunes_adapters or (growth.enabled and growth.trunk_strategy == "qlora"):
        return  # they learn, if not here, then later
    why = f"beside trunk_strategy: {growth.trunk_strategy}" if growth.enabled else "where the whole rack trains at once"
    advice = "set trunk_strategy: qlora, or leave"
    stacks = dict(zip(stack_uids(stage.rack), zip(stage.rack.stacks, rack.stacks, strict=True), strict=True))
    for uid, (stack, module) in stacks.items():
        is_new = uid == stage.uid or stage.kind == "first"
        if is_new and stack.lora is not None and stack.lora.apply and not stack.lora.trains:
            size = f"{_bytes([module], 'lora'):,} bytes"
            yield f"stack {uid}: its adapters stay zero {why}, and take {size}: {advice} qlora_enabled out"
    trunk = [module for stack, module in stacks.values() if stack.progressive_lora and not stack.progressive_lora.trains]
    if trunk:
        size = f"{_bytes(trunk, 'progressive'):,} bytes"
        yield f"trunk: its second adapters stay zero {why}, and take {size}: {advice} progressive_qlora out"


def _bytes(modules: Iterable[object], name: str) -> int:
    """What the adapters of a name take."""
    named = (pair for module in modules for pair in module.named_parameters())  # type: ignore[attr-defined]
    return sum(each.numel() * each.element_size() for path, each in named if f".adapters.{name}." in path)
