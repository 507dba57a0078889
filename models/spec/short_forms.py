"""Short forms of backbones: the layer names of the MAD suite, and one norm for all."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from configs import Problems, Registry, read_yaml
from configs.calls import parse_call
from configs.errors import Location, known_names
from configs.limits import LONGEST, WIDEST, shortened
from configs.load import apply_override
from models.spec.registries import CHANNEL_MIXERS, MIXERS, NORMS
from models.spec.rules import UNKNOWN_LENGTH, check_part

LISTED = "<layers>"
"""Stands for `layers` where a bare list was given, so that errors name the place in the list alone."""

LAYERS = Path(__file__).parents[2] / "configs" / "layers"


@cache
def layer_names() -> tuple[str, ...]:
    """The names that `layers:` knows: the files in `configs/layers/`."""
    return tuple(sorted(path.stem for path in LAYERS.glob("*.yaml")))


def layer(value: Any) -> tuple[Registry, dict[str, Any]]:
    """A layer as a text or as `{kind: ..., options}`: its registry and raw part; ValueError if unknown.

    A bare text is the layer of a file in `configs/layers` (`mh-attention`, `gated_delta_net`), or else a kind (`rwkv7`). With
    parentheses it is the kind that is spelt so, with its own defaults (`gated_delta_net(n_heads=4)`, `attention(window=8)`), or
    else the file with some options changed (`gated-delta-net(n_heads=4)`, `mh-attention(window=8)`).
    """
    if isinstance(value, str):
        value = _named_layer(value)
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise ValueError(  # noqa: TRY004 - what a user wrote, not a caller
            f"a layer is a name or a mapping with a kind; {known_names('', layer_names())}"
        )
    known = [registry for registry in (MIXERS, CHANNEL_MIXERS) if value["kind"] in registry]
    if not known:
        kinds = {*MIXERS, *CHANNEL_MIXERS}
        raise ValueError(f"unknown kind '{shortened(value['kind'])}'; {known_names(value['kind'], kinds)}")
    inner = _inner_kinds(value.get(known[0].named_parts))
    return next((registry for registry in known if any(kind in registry for kind in inner)), known[0]), value


def _named_layer(text: str) -> dict[str, Any]:
    name, options = parse_call(text)
    file, kinds = name.replace("_", "-"), {*MIXERS, *CHANNEL_MIXERS}
    if file in layer_names() and not ("(" in text and name in kinds):
        part = read_yaml(LAYERS / f"{file}.yaml")
    elif name in MIXERS or name in CHANNEL_MIXERS:
        part = {"kind": name}
    else:
        known = {*layer_names(), *(kind.replace("_", "-") for kind in kinds)}
        raise ValueError(f"unknown layer '{shortened(name)}'; {known_names(name, known)}")
    for option in options:
        apply_override(part, option)
    return part


def _inner_kinds(parts: Any) -> list[Any]:
    """The kinds of parts by name: a choice is of the registry that its choices are of."""
    values = parts.values() if isinstance(parts, dict) else ()
    return [part.get("kind") if isinstance(part, dict) else part for part in values]


def expand_layers(raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """`layers: [mixer, channel mixer, ...]` as `stacks:`; a mixer and the channel mixer after it make one block.

    In a pre-norm rack that is the same function as one residual unit a layer. Problems are reported at the layers' places.
    """
    key = LISTED if LISTED in raw else "layers"
    if key not in raw:
        return raw
    layers = raw[key]
    if "stacks" in raw:
        problems.add((key,), "give layers or stacks, not both")
    if not isinstance(layers, list | tuple) or not layers:
        problems.add((key,), "a list of layers is expected", layers)
        layers = []
    blocks: list[dict[str, Any]] = []
    for index, value in enumerate(layers):
        try:
            registry, part = layer(value)
            message = check_raw_part(registry, part, raw)
        except ValidationError as error:
            problems.adopt((key, index), error)
            continue
        except ValueError as error:
            problems.add((key, index), str(error), value)
            continue
        if message:
            problems.add((key, index), message)
        elif registry is MIXERS:
            blocks.append({"mixer": part, "mlp": None})
        elif blocks and blocks[-1]["mlp"] is None:
            blocks[-1]["mlp"] = part
        else:
            blocks.append({"mixer": None, "mlp": part})
    return {**{name: value for name, value in raw.items() if name != key}, "stacks": [{"blocks": blocks or [{}]}]}


def check_raw_part(registry: Registry, part: Any, raw: dict[str, Any]) -> str | None:
    """Why a part of a raw rack cannot be built at the rack's sizes; ValidationError if the part is wrong by itself."""
    d_model, max_length = raw.get("d_model"), raw.get("max_length")
    spec = registry.part(part)
    if type(d_model) is not int or not 0 < d_model <= WIDEST:
        return None  # a problem of its own, as is a wrong length
    is_length = type(max_length) is int and 0 < max_length <= LONGEST
    return check_part(registry, spec, d_model, max_length if is_length else UNKNOWN_LENGTH)


def raw_blocks(raw: dict[str, Any]) -> Iterator[tuple[Location, dict[str, Any]]]:
    """The blocks of a raw rack, as far as they are mappings, and where they are written."""
    stacks = raw.get("stacks")
    for index, stack in enumerate(stacks if isinstance(stacks, list | tuple) else ()):
        blocks = stack.get("blocks") if isinstance(stack, dict) else None
        named = blocks.items() if isinstance(blocks, dict) else enumerate(blocks if isinstance(blocks, list | tuple) else ())
        single = [(("block",), stack.get("block"))] if isinstance(stack, dict) else []
        for location, block in (*single, *((("blocks", name), block) for name, block in named)):
            if isinstance(block, dict):
                yield ("stacks", index, *location), block


def check_blocks(raw: dict[str, Any], problems: Problems) -> None:
    """Report parts that cannot be built; what is wrong with a part by itself is left to its own validation."""
    for location, block in raw_blocks(raw):
        for name, registry in (("mixer", MIXERS), ("mlp", CHANNEL_MIXERS)):
            try:
                message = check_raw_part(registry, block[name], raw) if block.get(name) is not None else None
            except (ValidationError, PydanticCustomError):
                continue
            if message:
                problems.add((*location, name), message)


def hand_down_norm(raw: dict[str, Any]) -> dict[str, Any]:
    """Write the rack's `norm` into every block that does not choose its own; a wrong one is left to its own validation."""
    try:
        NORMS.part(raw.get("norm") or "rmsnorm")
    except (ValidationError, PydanticCustomError):
        return raw
    if "norm" not in raw:
        return raw
    raw = copy.deepcopy(raw)
    for _, block in raw_blocks(raw):
        if "norm" not in block:
            for name in ("mixer_norm", "mlp_norm"):
                block.setdefault(name, raw["norm"])
    return raw
