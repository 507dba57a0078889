"""Qwen 2 and 2.5: biases on query, key and value; windows in the upper layers, if they are used at all."""

from models.huggingface.family import Family, layer_types_window


class Qwen2(Family):
    """Llama with biases; `use_sliding_window` turns windows on, from `max_window_layers` on or by `layer_types`."""

    def window(self, layer: int) -> int | None:
        """By `layer_types`, or by the layer's number."""
        config = self.config
        if not config.flag("use_sliding_window") or config.is_null("sliding_window"):
            types = config.layers("layer_types", self.n_layers) or ()
            if "sliding_attention" in types and not config.problems:
                config.refuse("layer_types", "sliding_attention without use_sliding_window: true and a sliding_window")
            return None
        if config.get("layer_types") is not None:
            return layer_types_window(config, self.n_layers, layer)
        has_window = layer >= config.size("max_window_layers", 28, least=0)
        return config.size("sliding_window", 4096) if has_window else None

    def biased(self) -> tuple[str, ...]:
        """Query, key and value."""
        return ("mixer.query", "mixer.key", "mixer.value")
