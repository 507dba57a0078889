"""Counts what a part computes and keeps by running a copy of it on the meta device, for parts that do not say it themselves."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Sized(nn.Module):
    """A module that remembers the `d_model` it was made with, its first argument or the one of that name."""

    d_model: int

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """Pickle and copy make one without arguments, and fill in what it remembers."""
        module = super().__new__(cls)
        if arguments or "d_model" in options:
            module.__dict__["d_model"] = options["d_model"] if "d_model" in options else arguments[0]
        return module


def measured_flops(module: Sized, seq_len: int) -> int:
    """The products and convolutions that torch counts in one forward pass of one sequence; ValueError if it cannot be run."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - imports torch's compiler, which takes seconds

    counter, twin = FlopCounterMode(display=False), _without_memory(module)
    try:
        with torch.no_grad(), counter:
            twin(torch.empty(1, seq_len, module.d_model, device="meta"))
    except RuntimeError as error:
        raise ValueError(_unmeasured(module, "flops", error)) from None
    return int(counter.get_total_flops())


def measured_state(module: Sized, seq_len: int) -> int:
    """The numbers in the state after so many positions: what the first step leaves, and what each more adds to it.

    Without a step form all inputs are kept, to start from anew.
    """
    if not getattr(module, "has_step", False):
        return seq_len * module.d_model
    twin: Any = _without_memory(module)
    x = torch.empty(1, module.d_model, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"):
            _, first = twin.step(x, twin.initial_state(1))
            _, second = twin.step(x, first)
    except RuntimeError as error:
        raise ValueError(_unmeasured(module, "state_size", error)) from None
    return _n_numbers(first) + (seq_len - 1) * (_n_numbers(second) - _n_numbers(first))


def _without_memory(module: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes alone."""
    tensors = (*module.parameters(), *module.buffers())
    known: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for parameter in module.parameters():
        known[id(parameter)] = nn.Parameter(known[id(parameter)], requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, known)


def _n_numbers(state: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(state))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for inner in state.values() if isinstance(state, dict) else state:
            yield from _tensors(inner)


def _unmeasured(module: nn.Module, name: str, error: RuntimeError) -> str:
    reason = str(error).partition("\n")[0]
    return f"{type(module).__name__} says no {name}, and could not be run on the meta device ({reason}): define {name}"
