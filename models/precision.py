"""The precision of a stack: what its products are computed in, and what its linears' weights are kept in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from models.parameters import LoraSpec
from models.quantised import fake_quantise, quantise

if TYPE_CHECKING:
    from models.spec import StackSpec

Precision = Literal["full", "half", "bfloat16", "fp8", "nvfp4", "qlora"]

COMPUTED: dict[str, torch.dtype] = {"half": torch.float16, "bfloat16": torch.bfloat16}
"""What products are computed in, by autocast, while the weights that train are float32; the others: as around the stack."""

FORMATS: dict[str, str] = {"half": "half", "bfloat16": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4", "qlora": "nf4"}
"""The formats of stored weights; `full` has none."""

TRAINED_AS_STORED = frozenset(("fp8", "nvfp4"))
"""Where no unit multiplies what is stored, weights that train are rounded to it for every product."""

QLORA = LoraSpec(rank=16, alpha=32.0)
"""The adapters of a stack of NF4 weights that nothing is said of: without any, nothing of its linears would train."""


def set_precision(stack: nn.Module, spec: StackSpec) -> None:
    """Keep, or train, the weights of a stack's linears as its spec says; those that are kept so already stay the same tensors.

    Raises:
        ValueError: for weights that are stored in another format, or have no finite values.
    """
    if spec.stored:
        quantise(stack, FORMATS[spec.precision])
    elif spec.precision in TRAINED_AS_STORED:
        fake_quantise(stack, FORMATS[spec.precision])
