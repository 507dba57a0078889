"""Quantisation of all linears of a module, and what a module takes in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from torch import nn

from models.linears.adapters import replace
from models.linears.convert import fake_quantised, quantised
from models.linears.formats import format_of
from models.linears.quantised import QuantisedLinear
from models.rack.contracts import Head


@dataclass(frozen=True)
class Quantisation:
    """What was done to a module: the names of the linears that changed, and the bytes of the whole module before and after."""

    format: str
    linears: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def quantise(module: nn.Module, format_name: str) -> Quantisation:
    """Store the weights of all linears below a module in a format, in place; heads, embeddings and norms stay as they are.

    Biases and adapters are the same parameters as before. On a module built alike, the same quantisation makes room for the
    state of this one.

    Raises:
        ValueError: if there is no such format, the module is a linear itself, or a weight is not finite or stored in another
            format already; nothing has been changed then.
    """
    return _replace_linears(module, format_name, quantised)


def fake_quantise(module: nn.Module, format_name: str) -> Quantisation:
    """Train all linears that `quantise` would store as they will be stored, in place; the parameters are those of before."""
    return _replace_linears(module, format_name, fake_quantised)


def memory_bytes(module: nn.Module) -> int:
    """What parameters and buffers take, measured; what stands at several places is counted once."""
    return sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))


def stored_numbers(module: nn.Module) -> int:
    """How many weights are stored in few bits: numbers of the model that are in none of its parameters."""
    return sum(part.in_features * part.out_features for part in module.modules() if isinstance(part, QuantisedLinear))


def _replace_linears(module: nn.Module, format_name: str, make: Callable[[nn.Linear, str], nn.Linear]) -> Quantisation:
    format_of(format_name)
    if isinstance(module, nn.Linear):
        raise ValueError(  # noqa: TRY004 - nothing holds it in which it could be replaced
            f"format = {format_name!r} is for linears below a module, and this is one itself: use {make.__name__}"
        )
    before, places = memory_bytes(module), _linears(module)
    # One that stands at several places stays one.
    made = {linear: make(linear, format_name) for linear in dict.fromkeys(places.values())}
    changed = {name: made[linear] for name, linear in places.items() if made[linear] is not linear}
    for name, linear in changed.items():
        replace(module, name, linear)
    return Quantisation(format_name, tuple(changed), before, memory_bytes(module))


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    """By all their names."""
    heads = [head for head in module.modules() if isinstance(head, Head)]
    kept = {part for head in heads for part in head.modules()}
    named = module.named_modules(remove_duplicate=False)
    return {name: part for name, part in named if isinstance(part, nn.Linear) and part not in kept}
