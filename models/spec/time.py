"""TimeSpec: the description of a rack's time embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from configs.limits import LONGEST, WIDEST
from models.spec.parameters import ParameterFields

if TYPE_CHECKING:
    from models.rack.time_embedding import TimeEmbedding


class TimeSpec(ParameterFields):
    """Time steps 0 to `n_steps` - 1 as sines (`sinusoidal`) or as rows that are learned, `d_time` wide: see `TimeEmbedding`."""

    kind: Literal["sinusoidal", "learned"] = "sinusoidal"
    n_steps: Annotated[PositiveInt, Field(le=LONGEST)]
    d_time: Annotated[PositiveInt, Field(le=WIDEST)] = 512

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Its constructor is the one place where its rules are written."""
        import torch

        from models.spec.meta_device import FastMeta

        with torch.device("meta"), FastMeta():
            self.build(d_model=1)
        return self

    def sizes(self) -> tuple[str, int, int]:
        """What is built, whatever is said of its parameters."""
        return self.kind, self.n_steps, self.d_time

    def build(self, *, d_model: int) -> TimeEmbedding:
        """The module."""
        from models.rack.time_embedding import TimeEmbedding

        return TimeEmbedding(d_model, self.n_steps, kind=self.kind, d_time=self.d_time)
