"""Adapters in the layout of the PEFT library: `adapter_config.json` and `adapter_model.safetensors` in a folder."""

import json
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from models.linears.adapters import AdaptedLinear, Adapter, tied_linears

CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT's wrapper puts before the names of the model's modules."""


def export_adapters(model: nn.Module, folder: str | Path, name: str = "lora", *, base_model: str | None = None) -> Path:
    """Write the adapters of that name, for a model whose linears have the names that they have in `model`.

    PEFT computes W x + alpha / rank * B A x with A [rank, d_in] and B [d_out, rank]. There is one rank and one alpha for all, and
    patterns for the linears that have others. Alpha is what gives the scale that an adapter has, also with `rslora`. `base_model`
    is where PEFT looks for the model.

    Raises:
        ValueError: if no linear has such an adapter, they differ in what there is but one of, or one is on a weight that another
            module has too: PEFT would merge it into both.
    """
    adapters = adapters_named(model, name)
    for path, other in tied_linears(model).items():
        if path in adapters:
            raise ValueError(f"the adapter '{name}' of {path} cannot be merged: its weight is also {other}")
    if not adapters:
        others = sorted({each for part in model.modules() if isinstance(part, AdaptedLinear) for each in part.adapters})
        raise ValueError(f"no linear has an adapter '{name}'; there are: {', '.join(others) or 'none'}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps({**config_of(adapters), "base_model_name_or_path": base_model}, indent=2)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights_of(adapters).items()}
    # Not `configs.storage`, for an export carries this file and has torch alone. `save_file` would hide the weights from others.
    with TemporaryDirectory(dir=folder, prefix=".adapter_") as unfinished:
        (Path(unfinished) / PEFT_WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        (Path(unfinished) / CONFIG).write_text(config + "\n", encoding="utf-8")
        for file in (PEFT_WEIGHTS, CONFIG):
            (Path(unfinished) / file).replace(folder / file)
    return folder


def adapters_named(model: nn.Module, name: str) -> dict[str, Adapter]:
    """The adapters of that name by the linear that they are on."""
    linears = {path: part for path, part in model.named_modules() if isinstance(part, AdaptedLinear) and name in part.adapters}
    return {path: linear.adapters[name] for path, linear in linears.items()}  # type: ignore[misc]


def weights_of(adapters: dict[str, Adapter]) -> dict[str, Tensor]:
    """A and B of every linear by PEFT's names."""
    pairs = ((path, "lora_A", adapter.down) for path, adapter in adapters.items())
    more = ((path, "lora_B", adapter.up) for path, adapter in adapters.items())
    return {f"{PREFIX}{path}.{matrix}.weight": weight for path, matrix, weight in (*pairs, *more)}


def config_of(adapters: dict[str, Adapter]) -> dict[str, Any]:
    """What PEFT makes adapters from that take these weights."""
    ranks = {path: len(adapter.down) for path, adapter in adapters.items()}
    alphas = {path: adapter.scale * ranks[path] for path, adapter in adapters.items()}
    dropouts = {0.0 if adapter.dropout is None else adapter.dropout.p for adapter in adapters.values()}
    if len(dropouts) > 1:
        raise ValueError(f"PEFT has one dropout for all adapters; these have {', '.join(map(str, sorted(dropouts)))}")
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropouts.pop(),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(adapters),
        # Keys are regular expressions over the names of modules.
        "rank_pattern": {re.escape(path): each for path, each in ranks.items() if each != rank},
        "alpha_pattern": {re.escape(path): each for path, each in alphas.items() if each != alpha},
    }
