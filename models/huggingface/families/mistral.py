"""Mistral: one window for all layers, or none, or windows in the layers that `layer_types` names."""

from models.huggingface.family import Family, layer_types_window


class Mistral(Family):
    """Llama with a window; transformers has one of 4,096 where the key is left out."""

    def window(self, layer: int) -> int | None:
        """By `layer_types`; without, the same for every layer; null is none."""
        if self.config.get("layer_types") is not None:  # transformers, too, takes such a Mistral for a Ministral
            return layer_types_window(self.config, self.n_layers, layer)
        if self.config.is_null("sliding_window"):
            return None
        return self.config.size("sliding_window", 4096)

    def biased(self) -> tuple[str, ...]:
        """None, whatever the keys say: the class has no such keys."""
        return ()
