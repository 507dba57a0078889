"""Gemma 3, the language model: norms around both halves, windows in five of six layers, GELU."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from models.huggingface.family import Family, layer_types_window


class Gemma3Text(Family):
    """Embeddings are multiplied by the root of d_model, norms by 1 + weight, scores by `query_pre_attn_scalar` ** -0.5."""

    defaults: ClassVar = {
        "tie_word_embeddings": True,
        "head_dim": 256,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    }
    qk_norm = True
    post_norms = True
    norm_offset = 1.0
    activation_key = "hidden_activation"

    def embedding_scale(self) -> float:
        """The root of d_model."""
        return math.sqrt(self.config.size("hidden_size"))

    def query_factor(self) -> float:
        """Scores here are divided by the root of the head's size."""
        return math.sqrt(self.config.size("head_dim") / self.config.number("query_pre_attn_scalar"))

    def window(self, layer: int) -> int | None:
        """By `layer_types`; without, all layers but every sixth."""
        return layer_types_window(self.config, self.n_layers, layer, default=self._kind(layer))

    def rope(self, layer: int) -> Mapping[str, Any]:
        """Layers with a window have a base of their own, and are never scaled in the old form."""
        config, is_local = self.config, self.window(layer) is not None
        name, base, key = (
            ("sliding_attention", 1e4, "rope_local_base_freq") if is_local else ("full_attention", 1e6, "rope_theta")
        )
        by_type = config.get("rope_parameters")
        if by_type is not None and not isinstance(by_type, Mapping):
            config.refuse("rope_parameters", "must be a mapping")
            by_type = {}
        theta = base if config.get(key) is None else config.get(key)
        rope, scaling = (by_type or {}).get(name), None if is_local else config.get("rope_scaling")
        if isinstance(rope, Mapping) and isinstance(scaling, Mapping):
            scaling = {**rope, **scaling}
        return self._rope(rope, scaling, theta)

    def _kind(self, layer: int) -> str:
        is_local = bool((layer + 1) % self.config.size("sliding_window_pattern"))
        return "sliding_attention" if is_local else "full_attention"
