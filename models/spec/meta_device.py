"""FastMeta builds modules on torch's meta device without importing its compiler; `refusal` is what a constructor objects to."""

import inspect
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from configs import Registry
from configs.registry import Part
from models.rack.choice import STOCHASTIC, Choice

ELEMENTWISE = frozenset(
    ("add", "sub", "__rsub__", "mul", "div", "neg", "pow", "remainder", "exp", "expm1", "log", "sin", "cos", "sign", "clone")
)


LARGE = 10**6
"""From which on an option is told of where sizes overflow."""


class FastMeta(TorchFunctionMode):
    """On the meta device: what only fills does nothing, and what computes element by element gives the shape of its result.

    Torch can do both there, but imports its compiler for it, which takes over a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name, kwargs = func.__name__, kwargs or {}
        if name.endswith("_") and not name.startswith("_") and name != "requires_grad_":
            return args[0] if args else kwargs["tensor"]
        shape = _shape(name, args, kwargs)
        if shape is None:
            return func(*args, **kwargs)
        tensor = next((each for each in (args[0] if name in ("stack", "cat") else args) if isinstance(each, Tensor)), None)
        return torch.empty(shape, dtype=None if tensor is None else tensor.dtype, device="meta")


def _shape(name: str, args: Any, kwargs: Any) -> list[int] | None:
    """The shape of a result, for what constructors compute; None leaves it to torch."""
    shape: list[int] | None = None
    if name in ELEMENTWISE:
        sizes = zip_longest(*(each.shape[::-1] for each in args if isinstance(each, Tensor)), fillvalue=1)
        shape = [max(each) for each in sizes][::-1]
    elif name == "stack":
        shape = list(args[0][0].shape)
        shape.insert(kwargs.get("dim", 0) % (len(shape) + 1), len(args[0]))
    elif name == "cat" and kwargs.keys() == {"dim"}:
        shape = list(args[0][0].shape)
        shape[kwargs["dim"]] = sum(each.shape[kwargs["dim"]] for each in args[0])
    elif name == "linspace" and not kwargs:
        shape = [args[2]]
    elif name == "repeat" and len(args) == args[0].dim() + 1:
        shape = [size * times for size, times in zip(args[0].shape, args[1:], strict=True)]
    elif name == "randn" and not kwargs:
        shape = [*args]
    elif name == "arange" and not kwargs:
        shape = [len(range(*map(int, args)))]
    return shape


def refusal(registry: Registry, part: Part, **sizes: int | None) -> tuple[str | None, int]:
    """Why the constructor of a part refuses its options at these sizes, in its own words, or None; and its parameters.

    Tables that are drawn once are counted with them; parameters of parts in the part are not.
    """
    component = registry[part.kind]
    options = {name: _stand_ins(value) if name == registry.named_parts else value for name, value in part.options().items()}
    handed_down = {"vocab_size": 1, **sizes, "make_norm": nn.Identity}
    named = inspect.signature(component).parameters
    try:
        with torch.device("meta"), FastMeta():
            module = component(**options, **{name: value for name, value in handed_down.items() if name in named})
    except ValueError as error:
        return str(error), 0
    except (RuntimeError, OverflowError, TypeError) as error:  # torch's and Python's own, for sizes whose product overflows
        large = ", ".join(f"{name} = {value}" for name, value in options.items() if isinstance(value, int) and value > LARGE)
        where = f" at these sizes ({large})" if large else ""
        return f"{part.kind} cannot be made{where}: {str(error).partition(chr(10))[0]}", 0
    return None, sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _stand_ins(parts: Mapping[str, Part | None]) -> dict[str, nn.Module | None]:
    """What the parts in a part are to its rules: they have been asked themselves."""
    choice = Choice({"any": nn.Identity()}, "any")
    kinds = {name: None if part is None else part.kind for name, part in parts.items()}
    return {name: kind and (choice if kind == STOCHASTIC else nn.Identity()) for name, kind in kinds.items()}  # type: ignore[misc]
