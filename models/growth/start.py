"""Initial weights of a stack added to a trained rack: identity, random, or copied from another stack."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from models.linears.convert import dense_state
from models.rack.choice import Choice
from models.rack.modules import Block, Stack

Init = Literal["identity", "random", "copy_last", "copy_middle"]

ENDS = ("output", "down", "shared_down")
"""What the linears that end mixers and channel mixers are called; all that a part gives goes through them."""


def set_start(stack: Stack, init: Init, trained: Sequence[Stack]) -> None:
    """Start a stack as `grow` says, from the stacks that are `trained`; it has been drawn, and has no adapters yet.

    Raises:
        ValueError: for another word, a source of other blocks, or a part that nothing can keep from adding something.
    """
    if init == "identity":
        add_nothing(stack)
    elif init == "copy_last":
        _copy(stack, trained[-1])
    elif init == "copy_middle":
        _copy(stack, trained[(len(trained) - 1) // 2])
    elif init != "random":
        raise ValueError(f"init = {init!r} must be one of identity, random, copy_last, copy_middle")


@torch.no_grad()
def add_nothing(stack: Stack) -> None:
    """Have every half of every block add exactly zero, and learn from the first step on (Zhang et al. 2019, arXiv 1901.09321).

    A post-norm with a gain that trains is zero: behind a zero linear, its own gradient would be 1 / sqrt(eps) times too large.
    Otherwise the linear that ends a part is zero, and its bias: it has a gradient, what is before it from the second step on. A
    part without one, which gives what it gets, gets nothing: its norm is zero.
    """
    for block in stack.blocks:
        assert isinstance(block, Block)
        for norm, part, post_norm in block.sublayers():
            if part is not None:
                for module in _silenced(norm, part, post_norm):
                    for tensor in module.parameters():
                        tensor.zero_()


def _silenced(norm: nn.Module | None, part: nn.Module, post_norm: nn.Module | None) -> list[nn.Module]:
    """The modules of a half by which, all zero, it adds nothing."""
    gain = getattr(post_norm, "weight", None)
    if post_norm is not None and gain is not None and gain.requires_grad:
        return [post_norm]
    choices = [each for _, each in part.named() if each is not None] if isinstance(part, Choice) else [part]
    found: list[nn.Module] = []
    for each in choices:
        silenced = _ends(each) or ([norm] if norm is not None and not isinstance(part, Choice) else [])
        if not silenced:
            raise ValueError(f"init = 'identity': {type(each).__name__} has no linear that ends it, and no norm of its own")
        found += silenced
    bias = getattr(post_norm, "bias", None)
    return [*found, nn.ParameterList([bias])] if bias is not None else found


def _ends(part: nn.Module) -> list[nn.Module]:
    found = (getattr(part, name, None) for name in ENDS)
    return [linear for linear in found if isinstance(linear, nn.Linear)]


def _copy(stack: Stack, source: Stack) -> None:
    weights, own = dense_state(source), stack.state_dict()
    if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError(f"a stack can only be copied from one of the same blocks, and those of stack {source.uid} are others")
    stack.load_state_dict(weights)
