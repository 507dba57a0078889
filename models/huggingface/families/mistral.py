"""Mistral 7B: one window for all layers, or none."""

from models.huggingface.family import Family


class Mistral(Family):
    """Llama with a window; transformers has one of 4,096 where the key is left out."""

    def window(self, layer: int) -> int | None:
        """The same for every layer; null is none."""
        del layer
        if self.config.is_null("sliding_window"):
            return None
        return self.config.size("sliding_window", 4096)

    def biased(self) -> tuple[str, ...]:
        """None, whatever the keys say: the class has no such keys."""
        return ()
