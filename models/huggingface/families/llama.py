"""Llama 2 and 3, SmolLM 1 and 2, and all that calls itself `llama`."""

from models.huggingface.family import Family


class Llama(Family):
    """Rotary attention with shared key heads, swiglu, rmsnorm."""
