"""A GGUF file of a Llama or Gemma 3, dequantised one tensor at a time, under Hugging Face's names.

The format stores what llama.cpp wants: rows of query and key in pairs for arch `llama`, 1 + weight for the norms of Gemma; both
are undone here.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BLOCK_NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
MODEL_TYPES = {"llama": "llama", "gemma3": "gemma3_text"}
ROTARY_FACTORS = "rope_freqs.weight"
GEMMA3_27B_LAYERS = 62
"""The one Gemma 3 whose scores are scaled by d_model / n_heads and not by the head's size; the file does not say so."""


def gguf_reader(path: Path) -> Any:
    """The file opened by the package `gguf`; ConfigError if that is not installed, or cannot make sense of the file."""
    try:
        import gguf  # noqa: PLC0415 - an optional package
    except ImportError:
        raise ConfigError(f"{path}: GGUF files are read by the package gguf, which is not installed: pip install gguf") from None
    if not path.is_file():
        raise ConfigError(f"{path}: is missing")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # noqa: BLE001 - of a file that is damaged it raises whatever the bytes lead to
        raise ConfigError(f"{path}: no GGUF file, or damaged: {type(error).__name__}: {error}") from None


class GGUFFile:
    """A trained model in one file; the same face as `ModelFolder`."""

    def __init__(self, path: Path) -> None:
        """Look at metadata and names.

        Raises:
            ConfigError: naming the file, for an architecture or a tensor that is not known, and for what is no GGUF.
        """
        self.path = path
        reader = gguf_reader(path)
        self._metadata = {name: _contents(field) for name, field in reader.fields.items() if "tokenizer" not in name}
        arch = str(self._metadata.get("general.architecture"))
        if arch not in MODEL_TYPES:
            raise ConfigError(f"{path}: architecture {arch} is not read from GGUF; {', '.join(MODEL_TYPES)} are")
        self._arch = arch
        self._tensors = {self._name(tensor.name): tensor for tensor in reader.tensors if tensor.name != ROTARY_FACTORS}
        self.shapes = {name: tuple(int(size) for size in tensor.shape[::-1]) for name, tensor in self._tensors.items()}
        self.dtypes = dict.fromkeys(self.shapes, "float32")
        self.config = self._config()
        factors = [tensor for tensor in reader.tensors if tensor.name == ROTARY_FACTORS]
        if factors and not np.all(_dequantised(factors[0]) == 1):
            raise ConfigError(f"{path}: {ROTARY_FACTORS}: rotary factors are not read from GGUF; give the model's folder")

    def place_of(self, name: str) -> str:
        """The file."""
        del name
        return str(self.path)

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU, in float32."""
        tensor = self._tensors[name]
        try:
            values = _dequantised(tensor).reshape(self.shapes[name])
        except Exception as error:  # noqa: BLE001 - whatever the bytes lead to
            raise ConfigError(f"{self.path}: {tensor.name}: cannot be dequantised: {error}") from None
        if self._arch == "llama" and (part := re.search(r"\.self_attn\.([qk])_proj\.", name)):
            n_heads = self.config["num_attention_heads" if part[1] == "q" else "num_key_value_heads"]
            values = values.reshape(n_heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if self._arch == "gemma3" and name.endswith("norm.weight"):
            values = values - np.float32(1)
        return torch.from_numpy(np.array(values, dtype=np.float32))

    def _name(self, name: str) -> str:
        """Hugging Face's name of a tensor."""
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        ours = None if found is None else {**TENSORS, **BLOCK_NORMS[self._arch]}.get(found[2])
        if found is None or ours is None:
            raise ConfigError(f"{self.path}: tensor {name} is not known in a {self._arch}")
        return f"{f'model.layers.{found[1]}.' if found[1] is not None else ''}{ours}.{found[3]}"

    def _config(self) -> dict[str, Any]:
        """What the config.json of the model would say."""
        values: dict[str, Any] = {
            "hidden_size": self._of("embedding_length"),
            "intermediate_size": self._of("feed_forward_length"),
            "num_hidden_layers": self._of("block_count"),
            "num_attention_heads": self._of("attention.head_count"),
            "num_key_value_heads": self._of("attention.head_count_kv"),
            "head_dim": self._of("attention.key_length"),
            "rms_norm_eps": self._of("attention.layer_norm_rms_epsilon", _short),
            "max_position_embeddings": self._of("context_length"),
            "rope_theta": self._of("rope.freq_base"),
            "sliding_window": self._of("attention.sliding_window"),
            "vocab_size": self.shapes.get("model.embed_tokens.weight", (None,))[0],
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._tensors,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self._tensors,
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }
        scaling = self._of("rope.scaling.type")
        if scaling not in (None, "none"):
            values["rope_scaling"] = {"rope_type": scaling, "factor": self._of("rope.scaling.factor")}
        head = values["head_dim"] or (values["hidden_size"] or 0) // (values["num_attention_heads"] or 1)
        if self._arch == "llama" and (turned := self._of("rope.dimension_count")) not in (None, head):
            values["partial_rotary_factor"] = turned / head
        if self._arch == "gemma3":
            is_27b = values["num_hidden_layers"] == GEMMA3_27B_LAYERS
            scale = values["hidden_size"] // values["num_attention_heads"] if is_27b else values["head_dim"]
            values |= {"query_pre_attn_scalar": scale, "attention_bias": False}
        known = {name: value for name, value in values.items() if value is not None}
        return {"model_type": MODEL_TYPES[self._arch], **known}

    def _of(self, key: str, change: Callable[[Any], Any] = lambda value: value) -> Any:
        """A value of the metadata; None if it is not there."""
        value = self._metadata.get(f"{self._arch}.{key}")
        return None if value is None else change(value)


def _contents(field: Any) -> Any:
    try:
        return field.contents()
    except Exception:  # noqa: BLE001 - a value that cannot be read is one that is not there
        return None


def _dequantised(tensor: Any) -> np.ndarray:
    from gguf.quants import dequantize  # noqa: PLC0415 - an optional package

    return dequantize(tensor.data, tensor.tensor_type)


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def metadata_of(path: Path, prefix: str) -> Mapping[str, Any]:
    """The metadata whose keys start so."""
    return {name: _contents(field) for name, field in gguf_reader(path).fields.items() if name.startswith(prefix)}
