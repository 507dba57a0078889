"""Edits of a stack's spec: freeze, unfreeze, adapters, precision."""

from collections.abc import Callable, Iterable
from typing import Any

from configs import GrowthSpec
from configs.errors import known_names
from models.architecture import Stack
from models.growth import new_stack as adapters
from models.growth.edit_spec import stack_position
from models.rack_spec import RackSpec
from models.spec.precision import STORED_AS, TRAINED_AS_STORED
from models.spec.stack import StackSpec


def changed(spec: RackSpec, uids: Iterable[int], change: Callable[[int, StackSpec], StackSpec]) -> RackSpec:
    """The rack with stacks changed by a function of uid and stack; ValueError for one that is not there."""
    stacks = list(spec.stacks)
    for uid in uids:
        position = stack_position(spec, uid)
        stacks[position] = change(uid, stacks[position])
    return RackSpec.model_validate({**spec.to_dict(), "stacks": [stack.to_dict() for stack in stacks]})


def frozen(stack: StackSpec) -> StackSpec:
    """With nothing in training."""
    return stack.model_copy(update={"lr_scale": 0.0})


def with_adapters_alone(stack: StackSpec, initial: StackSpec) -> StackSpec:
    """With its adapters in training, and nothing else; ValueError if it has none."""
    if stack.progressive_lora is None and (stack.lora is None or not stack.lora.apply):
        text = "has no adapters that could train: set qlora_enabled, or call add_qlora_to_all_stacks or add_qlora_to_trunk"
        raise ValueError(f"stack {stack.uid} {text}")
    return adapters.adapters_alone(stack.model_copy(update={"lr_scale": initial.lr_scale}))


def trainable(stack: StackSpec, initial: StackSpec) -> StackSpec:
    """With what trained when it was new, but for weights that are stored by now: there, adapters."""
    stack = stack.model_copy(update={"lr_scale": initial.lr_scale})
    if stack.stored:
        return adapters.adapters_alone(stack)
    own = initial.lora if initial.lora is not None else stack.lora and adapters.frozen_adapters(stack.lora)
    return stack.model_copy(
        update={"lora": own, "progressive_lora": stack.progressive_lora and adapters.frozen_adapters(stack.progressive_lora)}
    )


def with_own_adapters(stack: StackSpec, growth: GrowthSpec, uid: int) -> StackSpec:
    """With adapters of its own, frozen, if it has none."""
    if stack.lora is not None and stack.lora.apply:
        return stack
    return stack.model_copy(update={"lora": adapters.frozen_adapters(adapters.lora_of(growth, uid))})


def quantised_stack(stack: StackSpec, name: str, *, trains: bool) -> StackSpec:
    """With its weights stored in a format or precision of that name, or in training for it."""
    precision = adapters.PRECISIONS.get(STORED_AS.get(name, name))
    if precision is None:
        raise ValueError(f"unknown format '{name}'; {known_names(name, {*STORED_AS, *adapters.PRECISIONS})}")
    if trains and precision not in TRAINED_AS_STORED:
        raise ValueError(f"'{name}' is not trained as it is stored: choose one of {', '.join(sorted(TRAINED_AS_STORED))}")
    return stack.model_copy(update={"precision": precision}) if trains else adapters.stored_stack(stack, precision)


def adapter_size(stack: StackSpec) -> dict[str, Any]:
    """Rank and alpha of the adapters that a stack has of its own, and whether they train."""
    assert stack.lora is not None
    alpha = stack.lora.rank if stack.lora.alpha is None else stack.lora.alpha
    return {"rank": stack.lora.rank, "alpha": alpha, "enabled": stack.lora.trains and stack.lr_scale > 0}


def described(stack: Stack) -> dict[str, Any]:
    """What a stack is, in plain numbers."""
    spec, trained = stack.spec, [each for each in stack.parameters() if each.requires_grad]
    names = [name for name in ("lora", "progressive_lora") if (said := getattr(spec, name)) is not None and said.apply]
    return {
        "uid": stack.uid,
        "stack_id": stack.stack_id,
        "n_blocks": len(stack.blocks),
        "precision": spec.precision,
        "stored": spec.stored,
        "adapters": {name: {"rank": getattr(spec, name).rank, "trains": getattr(spec, name).trains} for name in names},
        "trainable": sum(each.numel() for each in trained),
        "bytes": stack.memory_bytes(),
    }
