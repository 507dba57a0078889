"""Rack files (`configs/racks/*.yaml`) as architectures of the MAD suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import ConfigError, read_yaml
from configs.calls import parse_call
from configs.errors import known_names
from configs.load import apply_override, parse_override, validate
from models import BackboneSpec, RackSpec
from models.spec.parameters import is_matched


def backbone_in(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """The backbone of a rack file: its width, norms, stacks, and what it says of their parameters.

    Embedding and head are the task's, as for every architecture; what the file says of them is left out. A value is
    `configs/llama.yaml`, or `configs/space.yaml(place=all:gdn, d_model=64)`: the placement of a space, overrides of the file; or
    `{rack: configs/space.yaml, place: all:gdn}`. Paths are relative to the working directory.

    Raises:
        ConfigError: if the file is wrong, or the placement is missing, unnecessary or does not fit.
    """
    said = {"rack": value} if isinstance(value, str) else dict(value)
    if not isinstance(said["rack"], str):
        raise ConfigError(f"rack: the path of a rack file is expected, got {said['rack']!r}")
    for key in said.keys() - {"rack", "place"}:
        raise ConfigError(f"unknown key '{key}' beside rack; {known_names(str(key), ('rack', 'place'))}")
    path, options = parse_call(said["rack"])
    placements = [parse_override(option)[1] for option in options if option.startswith("place=")]
    tree = read_yaml(path)
    if not {"stacks", "layers"} & tree.keys():
        raise ConfigError(f"{path}: no rack: there are neither stacks nor layers")
    for option in options:
        if not option.startswith("place="):
            apply_override(tree, option)
    rack = validate(RackSpec, tree, path)
    return _backbone(_placed(rack, path, [*placements, *([said["place"]] if "place" in said else [])]))


def _placed(rack: RackSpec, path: str, placements: list[Any]) -> RackSpec:
    slots = rack.slots()
    if len(placements) > 1:
        raise ConfigError(f"{path}: one placement is expected, got {len(placements)}")
    if not slots and placements:
        raise ConfigError(f"{path}: place: there is nothing to choose in this rack")
    if not slots:
        return rack
    if not placements or not isinstance(placements[0], str | list):
        text = f"this is a space, {len(slots)} choices are open; say which, as in {path}(place=all:{slots[0].names[-1]})"
        raise ConfigError(f"{path}: {text}")
    try:
        return rack.place(placements[0])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _backbone(rack: RackSpec) -> dict[str, Any]:
    tree = {name: value for name, value in rack.to_dict().items() if name in BackboneSpec.model_fields}
    if not rack.parameters:
        return tree
    from models.assembly.assemble import without_memory

    # A glob that is about embedding or head alone may match nothing in the rack of a task.
    names = [name for name, _ in without_memory(rack).named_parameters() if name.startswith("stacks.")]
    kept = [glob for glob in rack.parameters if any(is_matched(name, glob) for name in names)]
    return {**tree, "parameters": {glob: rack.parameters[glob].to_dict() for glob in kept}}


def architecture_name(text: str) -> str:
    """What a rack file is called beside others: `five(place=all:gdn)` for `configs/five.yaml(place=all:gdn)`."""
    path, options = parse_call(text)
    return Path(path).stem + (f"({', '.join(options)})" if options else "")
