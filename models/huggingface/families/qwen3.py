"""Qwen 3, dense: queries and keys are normalised per head."""

from typing import ClassVar

from models.huggingface.families.qwen2 import Qwen2
from models.huggingface.family import ATTENTION


class Qwen3(Qwen2):
    """Qwen 2 with norms instead of biases; heads have 128 channels where the key is left out."""

    defaults: ClassVar = {"head_dim": 128}
    qk_norm = True

    def biased(self) -> tuple[str, ...]:
        """All four projections, if `attention_bias`."""
        return tuple(f"mixer.{name}" for name in ATTENTION if self.config.flag("attention_bias"))
