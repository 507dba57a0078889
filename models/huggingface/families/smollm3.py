"""SmolLM 3: some layers have no positions, some a window."""

from typing import ClassVar

from models.huggingface.family import Family, layer_types_window


class SmolLM3(Family):
    """Llama in which every fourth layer does not turn its queries and keys, unless `no_rope_layers` says otherwise."""

    defaults: ClassVar = {"tie_word_embeddings": True, "rope_theta": 2000000.0, "no_rope_layer_interval": 4}

    def has_positions(self, layer: int) -> bool:
        """`no_rope_layers` has a 1 for layers with positions."""
        turns = self.config.layers("no_rope_layers", self.n_layers)
        return bool((layer + 1) % self.config.size("no_rope_layer_interval") if turns is None else turns[layer])

    def window(self, layer: int) -> int | None:
        """By `layer_types`; without, the layers that have no positions, if windows are used."""
        uses = self.config.flag("use_sliding_window") and self.config.get("sliding_window") is not None
        default = "sliding_attention" if uses and not self.has_positions(layer) else "full_attention"
        return layer_types_window(self.config, self.n_layers, layer, default=default)
