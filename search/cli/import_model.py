"""The command `import`: a trained model of Hugging Face, a folder or a GGUF file, becomes a folder that runs start from."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from configs import ConfigError
from configs.errors import known_names
from models.huggingface.importing import DType
from search.jobs.imported.job import import_counts, import_model
from search.runs.interruption import interruptions_raised


def run_import(arguments: argparse.Namespace, overrides: Sequence[str], backend: object) -> int:
    """Import, and print what came of it, the folder last."""
    del backend
    settings = dict(text.split("=", 1) for text in overrides)
    if unknown := sorted(settings.keys() - {"dtype"}):
        raise ConfigError(f"import: unknown setting '{unknown[0]}'; {known_names(unknown[0], ['dtype'])}")
    dtype, out = settings.get("dtype", "file"), Path(arguments.out)
    if dtype not in get_args(DType):
        raise ConfigError(f"import: dtype: unknown type '{dtype}'; {known_names(dtype, get_args(DType))}")
    with interruptions_raised():
        rack = import_model(Path(arguments.model), out, dtype=dtype)  # type: ignore[arg-type]
    told = import_counts(rack)
    print(f"{told['parameters']:,} parameters in {told['layers']} layers, {told['bytes']:,} bytes of {told['dtype']}")
    print(out)
    return 0
