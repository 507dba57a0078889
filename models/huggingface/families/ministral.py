"""Ministral: windows in the layers that `layer_types` names."""

from models.huggingface.families.mistral import Mistral


class Ministral(Mistral):
    """Mistral by another name."""
