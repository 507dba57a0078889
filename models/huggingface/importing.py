"""Turns a trained model, a folder or a GGUF file, into a rack: first its description, then its weights, one tensor at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from configs import ConfigError, Registry
from configs.errors import known_names
from configs.load import validate
from models.assembly.assemble import filled, without_numbers
from models.huggingface.family import CarriedWeight, Family
from models.huggingface.folder import ModelFolder
from models.huggingface.gguf_file import GGUFFile
from models.rack.modules import Rack
from models.rack_spec import RackSpec

FAMILIES = Registry("models.huggingface.families", "model_type")
DType = Literal["file", "float32", "bfloat16", "float16"]
WIDTHS = ("float16", "bfloat16", "float32")
"""What weights may be stored as, the widest last."""
LEFT_BEHIND = "rotary_emb.inv_freq"
"""How names of tensors end that old versions wrote beside the weights, and that are computed from the config."""


def open_model(path: Path) -> ModelFolder | GGUFFile:
    """A trained model by its folder or its GGUF file.

    Raises:
        ConfigError: if there is none.
    """
    if path.is_dir():
        return ModelFolder(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such folder or file")
    if path.suffix.lower() != ".gguf":
        raise ConfigError(f"{path}: a trained model is a folder with config.json and safetensors, or a .gguf file")
    return GGUFFile(path)


def family_of(model: ModelFolder | GGUFFile) -> Family:
    """How models of its `model_type` are carried; ConfigError that lists those which are, if this one is not."""
    model_type = model.config.get("model_type")
    place = str(model.path / "config.json") if isinstance(model, ModelFolder) else str(model.path)
    if model.config.get("auto_map") is not None:
        raise ConfigError(f"{place}: auto_map: the model brings code of its own, which is never run")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        told = f"model_type {model_type!r} is not read; {known_names(str(model_type), FAMILIES)}"
        raise ConfigError(f"{place}: {told}")
    family: Family = FAMILIES[model_type](model.config, place)
    return family


def import_rack(path: Path, *, dtype: DType = "file", device: torch.device | None = None) -> tuple[RackSpec, Rack]:
    """`read_rack` of what lies there: a folder with config.json and safetensors, or a GGUF file of a Llama or Gemma 3."""
    return read_rack(open_model(path), dtype=dtype, device=device)


def read_rack(
    model: ModelFolder | GGUFFile, *, dtype: DType = "file", device: torch.device | None = None
) -> tuple[RackSpec, Rack]:
    """The rack of a trained model and its description; in evaluation mode.

    What takes memory is the model once, in the type asked for, and one tensor of the file.

    Args:
        model: as `open_model` has it.
        dtype: of the weights; `file` is the widest that there is among them.
        device: where the weights are to lie; the CPU, if not given.

    Raises:
        ConfigError: naming key by key what the config says that a rack cannot be, or else tensor, file and both shapes where
            weights are missing, unexpected or of another shape or type. Nothing has been built then.
    """
    family = family_of(model)
    spec = validate(RackSpec, family.tree(), str(model.path))
    carried = {weight.ours: weight for weight in family.weights()}
    rack = without_numbers(spec)
    problems = list(_differences(model, carried, rack))
    if problems:
        raise ConfigError("\n".join(problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])))
    kind = max((model.dtypes[weight.theirs] for weight in carried.values()), key=WIDTHS.index) if dtype == "file" else dtype

    def read(name: str) -> Tensor:
        weight = carried[name]
        is_in_file = isinstance(model, ModelFolder)
        return weight.to_ours(model.read(weight.theirs)).to(device=device, dtype=getattr(torch, kind), copy=is_in_file)

    return spec, filled(rack, read).eval()


def _differences(model: ModelFolder | GGUFFile, carried: dict[str, CarriedWeight], rack: Rack) -> Iterator[str]:
    """What of the files does not fit the rack, a line each."""
    expected = {name: tuple(tensor.shape) for name, tensor in rack.state_dict().items()}
    for ours, weight in carried.items():
        theirs, shape = weight.theirs, expected[ours]
        if theirs not in model.shapes:
            yield f"{model.path}: {theirs} {list(shape)} is missing"
        elif model.shapes[theirs] != shape:
            yield f"{model.place_of(theirs)}: {theirs} is {list(model.shapes[theirs])}, not {list(shape)}"
        elif model.dtypes[theirs] not in WIDTHS:
            yield f"{model.place_of(theirs)}: {theirs} is of type {model.dtypes[theirs]}; {', '.join(WIDTHS)} are read"
    known = {weight.theirs for weight in carried.values()}
    is_tied = "lm_head.weight" not in known
    for theirs in model.shapes:
        if theirs in known or theirs.endswith(LEFT_BEHIND) or (theirs == "lm_head.weight" and is_tied):
            continue
        yield f"{model.place_of(theirs)}: {theirs} {list(model.shapes[theirs])} is not known in a {model.config['model_type']}"
    if is_tied and "lm_head.weight" in model.shapes and not _is_copy(model):
        yield f"{model.place_of('lm_head.weight')}: lm_head.weight is not the embedding's, but tie_word_embeddings is true"


def _is_copy(model: ModelFolder | GGUFFile) -> bool:
    """Whether the head's weight, which some write out though it is tied, is that of the embedding."""
    return torch.equal(model.read("lm_head.weight"), model.read("model.embed_tokens.weight"))
