"""A trained model that a job names: as Hugging Face has it, as a GGUF file, or as the command `import` has left it."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from models import Rack, RackSpec
from models.huggingface.importing import DType, family_of, import_rack, open_model
from search.jobs.imported.weights import imported_spec, load_imported
from search.runs.run_folder import SPEC

SAMPLE = 2**16
N_SAMPLES = 64
"""So many parts of so many bytes of a file, at even distances, tell it from another."""


def trained_tree(path: Path) -> dict[str, Any]:
    """The description of a trained model's rack, in plain values; none of its weights is read.

    Raises:
        ConfigError: if there is none, or it cannot be carried.
    """
    return imported_spec(path).to_dict() if (path / SPEC).exists() else family_of(open_model(path)).tree()


def trained_rack(path: Path, device: torch.device, *, dtype: DType = "float32") -> tuple[RackSpec, Rack]:
    """The rack of a trained model, in evaluation mode, and its description; ConfigError as above."""
    if (path / SPEC).exists():
        rack = load_imported(path, device)
        return imported_spec(path), rack if dtype == "file" else rack.to(getattr(torch, dtype))
    return import_rack(path, dtype=dtype, device=device)


def model_fingerprint(model: Path) -> str:
    """Of a model's files: names, sizes, and samples of what is in them, the header and the last weights included."""
    digest = hashlib.sha256()
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    for path in files:
        if path.suffix in (".safetensors", ".gguf") or path.name == "config.json":
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                for number in range(N_SAMPLES):
                    file.seek(number * max(size - SAMPLE, 0) // (N_SAMPLES - 1))
                    digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:12]
