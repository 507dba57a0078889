"""Has a stack's linears kept, or trained, in the precision that its spec names."""

import torch
from torch import nn

from models.assembly.quantise import fake_quantise, quantise
from models.spec.precision import STORED_AS, TRAINED_AS_STORED
from models.spec.stack import StackSpec

COMPUTED: dict[str, torch.dtype] = {"half": torch.float16, "bfloat16": torch.bfloat16}
"""What products are computed in, by autocast, while the weights that train are float32; the others: as around the stack."""


def set_precision(stack: nn.Module, spec: StackSpec) -> None:
    """Keep, or train, the weights of a stack's linears as its spec says; those that are kept so already stay the same tensors.

    Raises:
        ValueError: for weights that are stored in another format, or have no finite values.
    """
    if spec.stored:
        quantise(stack, STORED_AS[spec.precision])
    elif spec.precision in TRAINED_AS_STORED:
        fake_quantise(stack, STORED_AS[spec.precision])
