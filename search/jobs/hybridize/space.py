"""The space of a trained model: in every layer its own attention, and what may stand in for it."""

from collections.abc import Collection, Mapping
from itertools import count
from typing import Any

import torch
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from configs import ConfigError
from configs.errors import Location, config_error, yaml_path
from configs.load import validate
from configs.trained_model import model_path
from models import CHANNEL_MIXERS, MIXERS, RackSpec
from models.spec.meta_device import FastMeta
from models.spec.rules import check_part
from models.supernet.from_attention import PROJECTIONS
from search.jobs.hybridize.spec import Choices, HybridizeSpec
from search.jobs.imported.trained import trained_tree

OWN_MIXER, OWN_MLP = "attention", "mlp"
"""The names of the model's own parts."""


def described_space(spec: HybridizeSpec) -> RackSpec:
    """The space of a conversion, for which the model's config alone is read.

    Raises:
        ConfigError: if there is no such model, or a choice cannot stand where it should.
    """
    path = model_path(spec.model)
    if not path.exists():
        raise ConfigError(f"model: {spec.model}: no such folder or file")
    rack = validate(RackSpec, trained_tree(path), str(path))
    return space_of(rack, spec.choices, spec.mlp_choices, spec.layers)


def space_of(rack: RackSpec, choices: Choices, mlp_choices: Choices, layers: Collection[int] | None = None) -> RackSpec:
    """The model's rack with a choice in every layer, or in those `layers`, the model's own part its main one.

    Raises:
        ConfigError: naming the choice that cannot stand there.
    """
    tree, n_blocks = rack.to_dict(), sum(len(stack.expanded()) for stack in rack.stacks)
    chosen = range(n_blocks) if layers is None else layers
    if beyond := sorted(layer for layer in chosen if layer >= n_blocks):
        raise ConfigError(f"layers: the model has layers 0 to {n_blocks - 1}, and no {beyond[0]}")
    numbers = count()
    for index, stack in enumerate(rack.stacks):
        blocks = []
        for block in stack.expanded():
            made, is_chosen = block.to_dict(), next(numbers) in chosen
            if is_chosen and choices and made["mixer"] is not None and made["mixer"]["kind"] == OWN_MIXER:
                made["mixer"] = _choice(OWN_MIXER, made["mixer"], choices, rack.d_model)
            if is_chosen and mlp_choices and made["mlp"] is not None:
                made["mlp"] = _choice(OWN_MLP, made["mlp"], mlp_choices, rack.d_model)
            blocks.append(made)
        tree["stacks"][index] = {**stack.own_fields(), "blocks": blocks}
    try:
        space = RackSpec.model_validate(tree)
    except ValidationError as error:
        raise config_error("choices", error) from None
    if not space.slots():
        raise ConfigError("choices: the model has no attention that something could stand in for")
    return space


def _choice(own_name: str, own: dict[str, Any], choices: Choices, d_model: int) -> dict[str, Any]:
    key: Location = ("choices",) if own_name == OWN_MIXER else ("mlp_choices",)
    parts = {own_name: own}
    for name, given in choices.items():
        try:
            parts[name] = None if given is None else _stand_in(own_name, own, given, d_model)  # type: ignore[assignment]
        except ConfigError as error:
            raise ConfigError(f"{yaml_path((*key, name))}: {error}") from None
    return {"kind": "stochastic", "main": own_name, "mixers": parts}


def _stand_in(own_name: str, own: Mapping[str, Any], given: Mapping[str, Any], d_model: int) -> dict[str, Any]:
    """What stands in: the model's own part with other options, or one of another kind with as many heads and biases."""
    registry = MIXERS if own_name == OWN_MIXER else CHANNEL_MIXERS
    kind = given.get("kind", own["kind"])
    if kind == own["kind"]:
        tree = {**own, **given}
    else:
        options = registry.spec_of(kind).model_fields if kind in registry else {}
        alike: dict[str, Any] = {name: own[name] for name in ("n_heads", "d_ff") if name in options and own.get(name) is not None}
        tree = {**alike, **given}
    try:
        part = registry.part(tree)
    except PydanticCustomError as error:
        raise ConfigError(error.message()) from None
    except ValidationError as error:
        raise config_error(str(kind), error) from None
    if refused := check_part(registry, part, d_model, max_length=None):
        raise ConfigError(refused)
    parameters = tree.get("parameters", {})
    if kind == own["kind"]:
        return {**tree, "parameters": {**own.get("parameters", {}), **parameters}}
    with torch.device("meta"), FastMeta():
        module = registry.build(part, d_model=d_model, max_length=None)
    biased = {
        name: {"bias": True}
        for name in (*PROJECTIONS, "output")
        if own.get("parameters", {}).get(name, {}).get("bias") and isinstance(getattr(module, name, None), torch.nn.Linear)
    }
    return {**tree, **({"parameters": {**biased, **parameters}} if biased else {})}
