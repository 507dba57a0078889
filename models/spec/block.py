"""The description of a block: norm, mixer, norm, channel mixer, with residuals."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError
from pydantic_core import PydanticCustomError

from configs import Problems
from configs.registry import Part
from models.spec.parameters import ParameterFields
from models.spec.registries import CHANNEL_MIXERS, MIXERS, NORMS


def _rms_norm() -> Part:
    return NORMS.part("rmsnorm")


class BlockSpec(ParameterFields):
    """norm + mixer + norm + channel mixer with residuals; each part may be null.

    `norm` is short for both norms. `share` names a group of blocks that are one block, used several times.
    """

    short_forms = ("norm",)
    mixer: MIXERS.field() = None  # type: ignore[valid-type]
    mlp: CHANNEL_MIXERS.field() = None  # type: ignore[valid-type]
    mixer_norm: NORMS.field() = Field(default_factory=_rms_norm)  # type: ignore[valid-type]
    mlp_norm: NORMS.field() = Field(default_factory=_rms_norm)  # type: ignore[valid-type]
    mixer_post_norm: NORMS.field() = None  # type: ignore[valid-type]
    mlp_post_norm: NORMS.field() = None  # type: ignore[valid-type]
    output_scale: float = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    share: str | None = None

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand `norm`."""
        if "norm" not in raw:
            return raw
        rest = {key: value for key, value in raw.items() if key != "norm"}
        try:
            norm = raw["norm"] and NORMS.part(raw["norm"])
        except ValidationError as error:
            problems.adopt(("norm",), error)
            return rest
        except PydanticCustomError as error:
            problems.add(("norm",), error.message())
            return rest
        return {"mixer_norm": norm, "mlp_norm": norm, **rest}


Blocks = Annotated[
    Annotated[dict[str, BlockSpec], Tag("<named>")] | Annotated[tuple[BlockSpec, ...], Tag("<listed>")],
    Discriminator(lambda value: "<listed>" if isinstance(value, list | tuple) else "<named>"),
]
