"""What becomes of a stack when it is trunk: frozen, adapted, or trained on."""

from configs import GrowthSpec
from models.growth.new_stack import PRECISIONS, adapters_alone, stored_stack, with_second_adapters
from models.spec.stack import StackSpec


def trunk_stack(stack: StackSpec, settings: GrowthSpec, *, in_window: bool = True) -> StackSpec:
    """The stack, as it was when it was new, as a part of the trunk; of one that is frozen or has adapters already, itself.

    frozen: nothing trains, and what has learnt in few bits is stored in them. qlora: weights are stored, and adapters alone
    train, of stacks `in_window`. full: all trains on, but what is stored, with `trunk_lr_scale` on top of its own.
    """
    stack = with_second_adapters(stack, settings)
    if settings.trunk_strategy == "full":
        return stack.model_copy(update={"lr_scale": stack.lr_scale * settings.trunk_lr_scale})
    if settings.trunk_strategy == "frozen":
        return stack.model_copy(update={"stored": stack.precision != "full", "lr_scale": 0.0})
    if not stack.stored:  # what learnt in few bits is stored in those
        is_wide = stack.precision in ("full", "half", "bfloat16")
        stack = stored_stack(stack, PRECISIONS[settings.quantization_type] if is_wide else stack.precision)
    return adapters_alone(stack.model_copy(update={"lr_scale": stack.lr_scale if in_window else 0.0}))
