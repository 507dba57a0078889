"""A GGUF file of a Llama or Gemma 3, dequantised one tensor at a time, under Hugging Face's names.

The format stores what llama.cpp wants: rows of query and key in pairs for arch `llama`, 1 + weight for the norms of Gemma; both
are undone here.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from configs import ConfigError
from configs.gguf_header import read_header
from models.huggingface.gguf_weights import check_sizes, read_dequantised

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
SCALING_KEYS = ("type", "factor", "original_context_length", "finetuned")
"""What is read of how rotary positions are scaled, or (the last) changes nothing."""
GEMMA3_27B_LAYERS = 62
"""The one Gemma 3 whose scores are scaled by d_model / n_heads and not by the head's size; the file does not say so."""


class GGUFFile:
    """A trained model in one file; the same face as `ModelFolder`."""

    def __init__(self, path: Path) -> None:
        """Look at metadata and names.

        Raises:
            ConfigError: naming the file, for an architecture or a tensor that is not known, and for what is no GGUF.
        """
        self.path = path
        header = read_header(path)
        self._metadata = {name: value for name, value in header.metadata.items() if not name.startswith("tokenizer.")}
        if (n_files := self._metadata.get("split.count", 1)) not in (0, 1):
            raise ConfigError(f"{path}: split.count = {n_files}: several files are not read; llama-gguf-split merges them")
        arch = str(self._metadata.get("general.architecture"))
        if arch not in MODEL_TYPES:
            raise ConfigError(f"{path}: architecture {arch} is not read from GGUF; {', '.join(MODEL_TYPES)} are")
        self._arch = arch
        check_sizes(path, header.tensors)
        factors = header.tensors.pop(ROTARY_FACTORS, None)
        self._names = {self._name(name): name for name in header.tensors}
        self._tensors = {name: header.tensors[theirs] for name, theirs in self._names.items()}
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = dict.fromkeys(self.shapes, "float32")
        self.config = self._config()
        if factors is not None and not (read_dequantised(path, ROTARY_FACTORS, factors) == 1).all():
            raise ConfigError(f"{path}: {ROTARY_FACTORS}: rotary factors are not read from GGUF; give the model's folder")

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return (self.path,)

    def place_of(self, name: str) -> str:
        """The file."""
        del name
        return str(self.path)

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU, in float32."""
        values = read_dequantised(self.path, self._names[name], self._tensors[name])
        if self._arch == "llama" and (part := re.search(r"\.self_attn\.([qk])_proj\.", name)):
            n_heads = self.config["num_attention_heads" if part[1] == "q" else "num_key_value_heads"]
            values = values.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        if self._arch == "gemma3" and name.endswith("norm.weight"):
            values -= 1
        return values

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
            "rope_local_base_freq": self._of("rope.freq_base_swa"),
            "sliding_window": self._of("attention.sliding_window"),
            "sliding_window_pattern": self._of("attention.sliding_window_pattern"),
            "attn_logit_softcapping": self._of("attn_logit_softcapping"),
            "final_logit_softcapping": self._of("final_logit_softcapping"),
            "vocab_size": self.shapes.get("model.embed_tokens.weight", (None,))[0],
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._tensors,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self._tensors,
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "is_causal": self._metadata.get(f"{self._arch}.attention.causal"),
            "rope_scaling": self._rope_scaling(),
        }
        share = (values["hidden_size"] or 0) // (values["num_attention_heads"] or 1)
        head, turned = values["head_dim"] or share, self._of("rope.dimension_count")
        if turned is not None and turned != head > 0:
            values["partial_rotary_factor"] = turned / head
        if self._arch == "gemma3":
            is_27b = values["num_hidden_layers"] == GEMMA3_27B_LAYERS
            values |= {"query_pre_attn_scalar": share if is_27b else values["head_dim"], "attention_bias": False}
        known = {name: value for name, value in values.items() if value is not None}
        return {"model_type": MODEL_TYPES[self._arch], **known}

    def _rope_scaling(self) -> dict[str, Any] | None:
        """As llama.cpp reads it: linear if no type is given, by a factor that has an older name too."""
        prefix = f"{self._arch}.rope.scaling."
        for name in self._metadata:
            if name.startswith(prefix) and name.removeprefix(prefix) not in SCALING_KEYS:
                raise ConfigError(f"{self.path}: {name} is not read from GGUF; give the model's folder")
        kind = self._metadata.get(f"{prefix}type", "linear")
        factor = self._of("rope.scaling.factor") or self._of("rope.scale_linear") or None
        if kind == "none" or (kind == "linear" and factor in (None, 1)):
            return None
        own = {"factor": factor, "original_max_position_embeddings": self._of("rope.scaling.original_context_length")}
        return {"rope_type": kind, **{name: value for name, value in own.items() if value is not None}}

    def _of(self, key: str, change: Callable[[Any], Any] = lambda value: value) -> Any:
        """A number of the metadata; None if it is not there."""
        value = self._metadata.get(f"{self._arch}.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ConfigError(f"{self.path}: {self._arch}.{key} is no number, but {type(value).__name__}")
        return None if value is None else change(value)


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
