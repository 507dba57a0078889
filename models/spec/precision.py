"""The precision of a stack: what its products are computed in, and what its linears' weights are kept in."""

from typing import Literal

from models.spec.parameters import LoraSpec

Precision = Literal["full", "half", "bfloat16", "fp8", "nvfp4", "qlora"]

STORED_AS: dict[str, str] = {"half": "half", "bfloat16": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4", "qlora": "nf4"}
"""The formats of stored weights; `full` has none."""

TRAINED_AS_STORED = frozenset(("fp8", "nvfp4"))
"""Where no unit multiplies what is stored, weights that train are rounded to it for every product."""

QLORA = LoraSpec(rank=16, alpha=32.0)
"""The adapters of a stack of NF4 weights that nothing is said of: without any, nothing of its linears would train."""
