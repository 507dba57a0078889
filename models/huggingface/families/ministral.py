"""Ministral: windows in the layers that `layer_types` names."""

from models.huggingface.families.mistral import Mistral
from models.huggingface.family import layer_types_window


class Ministral(Mistral):
    """Mistral with a choice for each layer; without `layer_types`, all have the window if there is one."""

    def window(self, layer: int) -> int | None:
        """By `layer_types`."""
        if self.config.get("layer_types") is None:
            return super().window(layer)
        return layer_types_window(self.config, self.n_layers, layer)
