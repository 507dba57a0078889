"""Has a stack's linears kept, or trained, in the precision that its spec names."""

from __future__ import annotations

from torch import nn

from models.linears import fake_quantise, quantise
from models.spec.precision import STORED_AS, TRAINED_AS_STORED
from models.spec.stack import StackSpec


def set_precision(stack: nn.Module, spec: StackSpec) -> None:
    """Keep, or train, the weights of a stack's linears as its spec says; those that are kept so already stay the same tensors.

    Raises:
        ValueError: for weights that are stored in another format, or have no finite values.
    """
    if spec.stored:
        quantise(stack, STORED_AS[spec.precision])
    elif spec.precision in TRAINED_AS_STORED:
        fake_quantise(stack, STORED_AS[spec.precision])
