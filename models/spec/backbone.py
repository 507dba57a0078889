"""The description of a backbone: the stacks of a rack, without embedding and head."""

import json
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from configs import Problems
from configs.limits import WIDEST
from models.spec.block import _rms_norm
from models.spec.parameters import ParameterFields
from models.spec.registries import CHANNEL_MIXERS, MIXERS, NORMS
from models.spec.rules import UNKNOWN_LENGTH, check_part, check_shares, check_uids
from models.spec.short_forms import check_blocks, expand_layers, hand_down_norm
from models.spec.size import parameter_problems, stack_problems
from models.spec.stack import StackSpec


def _expand_init_std(raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
    std = raw.get("init_std")
    if std is not None and raw.get("init") is not None:
        problems.add(("init_std",), "give init or init_std, not both")
    rest = {key: value for key, value in raw.items() if key != "init_std"}
    return rest if std is None else {**rest, "init": {"kind": "normal", "std": std}}


class BackboneSpec(ParameterFields):
    """The stacks of a rack, without embedding and head: what is compared between architectures.

    `layers: [mh-attention, swiglu, ...]` is short for one stack of the MAD suite's layers, each a pre-norm residual unit.
    `norm` is the kind of every norm that a block does not choose itself. `init_std: 0.02` is short for `init: {kind: normal, std:
    0.02}`: all linears start from that distribution.
    """

    short_forms = ("layers", "init_std")
    d_model: Annotated[PositiveInt, Field(le=WIDEST)]
    norm: NORMS.field() = Field(default_factory=_rms_norm)  # type: ignore[valid-type]
    stacks: Annotated[tuple[StackSpec, ...], Field(min_length=1)]

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand short forms; check blocks here too, so that parts that do not fit are reported beside misspelt keys."""
        raw = hand_down_norm(expand_layers(_expand_init_std(raw, problems), problems))
        check_blocks(raw, problems)
        return raw

    @model_validator(mode="after")
    def _check_depth(self) -> Self:
        problems = Problems()
        for location, message in stack_problems(self.stacks):
            problems.add(location, message)
        problems.raise_if_any(type(self).__name__)
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        max_length = getattr(self, "max_length", UNKNOWN_LENGTH)
        messages = {
            ("stacks", index, *placed.location, name): check_part(registry, part, self.d_model, max_length)
            for index, stack in enumerate(self.stacks)
            for placed in stack.blocks_with_paths()
            for name, registry, part in (("mixer", MIXERS, placed.block.mixer), ("mlp", CHANNEL_MIXERS, placed.block.mlp))
        }
        problems = Problems()
        for location, message in messages.items():
            if message:
                problems.add(location, message)
        for location, message in parameter_problems(self.stacks, d_model=self.d_model, max_length=max_length):
            problems.add(location, message)
        check_uids(problems, stack_uids(self), getattr(self, "next_uid", None))
        # As text: the order of globs counts.
        around = [json.dumps({**stack.own_fields(), "uid": None}) for stack in self.stacks]
        shares = [
            (("stacks", index, *placed.location), placed.block, around[index])
            for index, stack in enumerate(self.stacks)
            for placed in stack.blocks_with_paths()
        ]
        check_shares(problems, shares)
        problems.raise_if_any(type(self).__name__)
        return self


def stack_uids(spec: BackboneSpec) -> tuple[int, ...]:
    """What tells the stacks of a rack apart wherever they come to stand: the `uid` of each, or else its position."""
    return tuple(index if stack.uid is None else stack.uid for index, stack in enumerate(spec.stacks))
