"""Imports a trained model of Hugging Face into a folder: a rack's description, its weights, and the model's tokenizer files."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch

from configs import ConfigError
from configs.storage import whole_file
from models import Rack
from models.huggingface.folder import ModelFolder
from models.huggingface.gguf_file import GGUFFile
from models.huggingface.importing import DType, open_model, read_rack
from search.jobs.imported.spec import ImportSpec
from search.jobs.imported.weights import load_imported
from search.runs.run_folder import SPEC, WEIGHTS, run_folder
from search.training import checkpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
"""What is copied beside the weights, where a model's folder has it."""


def import_model(path: Path, out: Path, *, dtype: DType = "file") -> Rack:
    """Write what is imported into a folder, unless it is there already; the rack.

    `weights.safetensors`, which is written last, has the rack's description in its state. Whatever goes wrong before leaves none.

    Args:
        path: a folder with config.json and safetensors, or a GGUF file.
        out: a folder that is empty or not there; or one that the same import has left.
        dtype: of the weights; `file` is the widest that there is among them.

    Raises:
        ConfigError: for a model that is not read, in the words of `read_rack`, and a folder that holds something else.
    """
    model = open_model(path)
    if out.exists() and not (out / SPEC).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: holds something that is no import; give another folder")
    spec = ImportSpec(source=path.resolve().name, source_hash=_hash(model), dtype=dtype)
    with run_folder(out, spec):
        if (out / WEIGHTS).exists():
            return load_imported(out)
        rack_spec, rack = read_rack(model, dtype=dtype)
        for file in tokenizer_files(model):
            with whole_file(out / file.name) as unfinished:
                shutil.copyfile(file, unfinished)
        state = {
            "job": spec.job,
            "fingerprint": spec.fingerprint(),
            "source": spec.source,
            "source_hash": spec.source_hash,
            "rack": rack_spec.saved(),
            "dtype": dtype_of(rack),
        }
        checkpoint.save(out / WEIGHTS, checkpoint.weights(rack), state)
    return rack


def tokenizer_files(model: ModelFolder | GGUFFile) -> list[Path]:
    """The files of a model that are copied; a GGUF file has its tokenizer inside, and none of its own."""
    if not isinstance(model, ModelFolder):
        return []
    return [file for name in TOKENIZER_FILES if (file := model.path / name).is_file()]


def import_counts(rack: Rack) -> dict[str, Any]:
    """What an imported model amounts to: parameters, layers, bytes, dtype."""
    tensors = checkpoint.weights(rack).values()
    return {
        "parameters": sum(parameter.numel() for parameter in rack.parameters()),
        "layers": len(rack.blocks()),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "dtype": dtype_of(rack),
    }


def dtype_of(rack: Rack) -> str:
    """The type of a rack's weights by its short name."""
    return str(rack.embedding.weight.dtype).removeprefix(f"{torch.__name__}.")


def _hash(model: ModelFolder | GGUFFile) -> str:
    """The hash of all files that the import reads or copies."""
    digest = hashlib.sha256()
    for path in (*model.files, *tokenizer_files(model)):
        try:
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:12]
