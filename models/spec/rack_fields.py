"""The fields of a whole model's description, without the checks that need it built."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from configs.limits import LONGEST
from models.spec.backbone import BackboneSpec
from models.spec.registries import EMBEDDINGS, HEADS
from models.spec.time import TimeSpec


class RackFields(BackboneSpec):
    """A whole model. `max_length` is needed by parts whose parameters depend on it (hyena, the autoencoder head).

    `residual_dtype` is the type of the residual stream between the parts; null is that of the weights, also under autocast.
    `time` is what tells it how far a sample is noised. `next_uid` is that of the next stack to come (null: one above the highest
    that is there), so that a stack that has gone is not taken for another one.
    """

    vocab_size: Annotated[PositiveInt, Field(le=LONGEST)]
    max_length: Annotated[PositiveInt, Field(le=LONGEST)] | None = None
    tie_embeddings: bool = False
    residual_dtype: Literal["bfloat16"] | None = None
    embedding: EMBEDDINGS.field() = Field(default_factory=lambda: EMBEDDINGS.part("token"))  # type: ignore[valid-type]
    head: HEADS.field() = Field(default_factory=lambda: HEADS.part("language_model"))  # type: ignore[valid-type]
    time: TimeSpec | None = None
    next_uid: NonNegativeInt | None = None


AnyRack = TypeVar("AnyRack", bound=RackFields)
