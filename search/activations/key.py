"""CacheKey: everything that a cached activation depends on; equal keys mean equal bits."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, field_validator

from configs import Spec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DtypeName = Literal["float32", "bfloat16", "float16"]


class CacheKey(Spec):
    """All that a cached hidden state depends on beside the sample and the variant of its corruption.

    `corruption` makes the input of (sample, variant) from the sample: a mapping, or any spec; empty where inputs are not
    corrupted. `architecture` is a spec or a mapping of what no tensor of the trunk says (a window, the scale of an adapter, the
    mixers that are active). `data` is the fingerprint of the samples, `precision` what the trunk computes in, and
    `rows_per_forward` the trunk's, for kernels round by the size of a batch.
    """

    trunk_hash: str
    architecture: dict[str, Any] = Field(default_factory=dict)
    corruption: dict[str, Any] = Field(default_factory=dict)
    data: str
    precision: str = "fp32"
    dtype: DtypeName
    time: PositiveInt
    d_model: PositiveInt
    rows_per_forward: PositiveInt = 1
    format: PositiveInt = 1
    torch_version: str = torch.__version__

    @field_validator("architecture", "corruption", mode="before")
    @classmethod
    def _as_mapping(cls, value: Any) -> Any:
        return {type(value).__name__: value.content()} if isinstance(value, Spec) else value

    @property
    def shape(self) -> tuple[int, int]:
        """[time, d_model] of one hidden state."""
        return self.time, self.d_model

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type it is kept in."""
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Of one hidden state."""
        return self.time * self.d_model * self.torch_dtype.itemsize

    def folder_in(self, parent: Path) -> Path:
        """Where its cache lies among those of other keys."""
        return parent / f"activations-{self.fingerprint()}"

    def size_text(self, n_rows: int) -> str:
        """How large a cache of so many samples and variants is, and why."""
        factors = f"{n_rows} samples x {self.time} time x {self.d_model} d_model x {self.torch_dtype.itemsize} bytes"
        return f"{factors} = {n_rows * self.row_bytes} bytes"
