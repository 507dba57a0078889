"""What a new stack is: its precision and adapters, as it is added and once it is part of the trunk."""

from configs import GrowthSpec
from configs.growth import Pattern
from configs.limits import WIDEST
from models.growth.edit_spec import stack_uids
from models.linears.adapters import AdaptedLinear, adapters_of
from models.rack.modules import Rack
from models.rack_spec import RackSpec
from models.spec.parameters import LoraSpec
from models.spec.precision import STORED_AS, Precision
from models.spec.stack import StackSpec

PRECISIONS: dict[str, Precision] = {stored: precision for precision, stored in STORED_AS.items()}  # type: ignore[misc]
"""Of stacks that are stored, by the format of their weights."""

RANK_STEP, ALPHA_STEP = 8, 16
"""What the linear pattern adds from stack to stack."""


def lora_of(settings: GrowthSpec, index: int) -> LoraSpec:
    """The adapters that a stack has of its own; `index` counts stacks as they were created, wherever they stand.

    Increasing sizes double from stack to stack, decreasing ones halve, to no less than 1. A rank never exceeds half of the
    smaller side of a linear.
    """
    rank, alpha = settings.qlora_rank, settings.qlora_alpha
    if settings.qlora_strategy == "progressive":
        rank = min(int(_by_pattern(settings.qlora_rank_pattern, rank, index, RANK_STEP)), WIDEST)  # as no linear has it
        alpha = _by_pattern(settings.qlora_alpha_pattern, alpha, index, ALPHA_STEP)
    elif settings.qlora_strategy == "variable" and index in settings.qlora_configs:
        size = settings.qlora_configs[index]
        rank, alpha = size.rank or rank, size.alpha or alpha
    return _adapters(settings, rank, alpha)


def progressive_lora_of(settings: GrowthSpec) -> LoraSpec | None:
    """The second adapters of a stack in the trunk; None where it gets none."""
    if not settings.has_second_adapters:
        return None
    return _adapters(settings, settings.progressive_qlora_rank, settings.progressive_qlora_alpha)


def new_stack(stack: StackSpec, settings: GrowthSpec, index: int) -> StackSpec:
    """The stack as it is added: in the precision of new stacks, and with its adapters, where it does not say its own.

    On weights that are stored from the start these are what trains. Beside weights that train they would add nothing that the
    weights cannot learn: they are there for later, frozen.
    """
    precision = settings.new_stack_precision if stack.precision == "full" else stack.precision
    is_stored = stack.stored or precision == "qlora"
    lora = stack.lora
    if lora is None and (is_stored or settings.qlora_enabled):
        lora = lora_of(settings, index)
        if not is_stored:
            with_base = settings.train_stack_lora_with_base
            lora = lora.model_copy(update={"freeze_base": False, "freeze_others": False}) if with_base else frozen_adapters(lora)
    return stack.model_copy(update={"precision": precision, "stored": is_stored, "lora": lora})


def with_second_adapters(stack: StackSpec, settings: GrowthSpec) -> StackSpec:
    """The stack with the adapters of a trunk, frozen, where it is to get some and has none."""
    second = progressive_lora_of(settings)
    if second is None or stack.progressive_lora is not None:
        return stack
    return stack.model_copy(update={"progressive_lora": frozen_adapters(second)})


def frozen_adapters(adapters: LoraSpec) -> LoraSpec:
    """Adapters that are there and do not train."""
    return adapters.model_copy(update={"trains": False})


def adapters_alone(stack: StackSpec) -> StackSpec:
    """The stack with all its adapters in training, and nothing else."""
    trains = {"trains": True, "freeze_others": None, "freeze_base": True}
    loras = {name: getattr(stack, name) for name in ("lora", "progressive_lora")}
    return stack.model_copy(update={name: lora and lora.model_copy(update=trains) for name, lora in loras.items()})


def stored_stack(stack: StackSpec, precision: Precision) -> StackSpec:
    """The stack with its weights stored in a format; it has the adapters that it had, and no others."""
    # Where nothing is said, qlora has adapters, and freezes the rest.
    no_others = LoraSpec(apply=False, freeze_others=False) if precision == "qlora" else None
    return stack.model_copy(update={"precision": precision, "stored": True, "lora": stack.lora or no_others})


def _adapters(settings: GrowthSpec, rank: int, alpha: float) -> LoraSpec:
    # What is said at a stack is said of names as long as blocks.0.mixer.query.
    targets = tuple(glob if glob == "*" else f"*.{glob}" for glob in settings.qlora_targets)
    return LoraSpec(rank=rank, alpha=alpha, rslora=settings.qlora_rslora, targets=targets, fit=True)


def _by_pattern(pattern: Pattern, first: float, index: int, step: int) -> float:
    if pattern == "increasing":
        return first * 2**index
    if pattern == "decreasing":
        return max(first / 2**index, 1)
    return first + (step * index if pattern == "linear" else 0)


def capped_notes(rack: Rack, spec: RackSpec) -> list[str]:
    """Where all adapters of a stack of the rack are smaller than its spec says; a narrow linear among wide ones is no mistake."""
    notes = []
    for uid, said, stack in zip(stack_uids(spec), spec.stacks, rack.stacks, strict=True):
        linears = [part for part in stack.modules() if isinstance(part, AdaptedLinear)]
        for name, asked in {"lora": said.lora, "progressive": said.progressive_lora}.items():
            found = max((adapters_of(linear)[name].rank for linear in linears if name in linear.adapters), default=None)
            if asked is not None and found is not None and found < asked.rank:
                text = f"rank {asked.rank} is over half of the smaller side of every linear; the highest it came to is {found}"
                notes.append(f"stack {uid}: {text}")
    return notes
