"""The config.json of a trained model, read key by key; what cannot be carried is gathered, to be told all at once."""

import sys
from collections.abc import Mapping
from typing import Any

from configs import ConfigError

LARGEST_SIZE = 2**31
UNSUPPORTED = {
    "quantization_config": "quantised weights are not read: give the model in float32, bfloat16 or float16, or as a GGUF",
    "auto_map": "the model brings code of its own, which is never run",
    "attn_logit_softcapping": "attention here has no soft cap",
    "final_logit_softcapping": "the head here has no soft cap",
    "use_bidirectional_attention": "racks of language models are causal",
}
"""Keys that change what a model computes, in any family, and cannot be carried; null and false are as good as absent."""


class FamilyConfig:
    """The values of a config.json, with the defaults that the family's class in transformers has for what is left out.

    What is wrong is kept in `problems`, and a stand-in is returned, so that all of it is told at once.
    """

    def __init__(self, values: Mapping[str, Any], place: str, defaults: Mapping[str, Any]) -> None:
        self._values = {
            **defaults,
            **{name: value for name, value in values.items() if value is not None or name not in defaults},
        }
        self._given = values
        self.place, self.problems = place, list[str]()
        for name, why in UNSUPPORTED.items():
            if values.get(name) not in (None, False):
                self.refuse(name, why)
        if values.get("is_causal") not in (None, True):
            self.refuse("is_causal", UNSUPPORTED["use_bidirectional_attention"])

    def refuse(self, name: str, why: str) -> None:
        """Note that the value of a key cannot be carried; once, however many layers ask for it."""
        problem = f"{name} = {_shown(self.get(name))}: {why}"
        if problem not in self.problems:
            self.problems.append(problem)

    def get(self, name: str) -> Any:
        """The value of a key, as it stands; None if there is none."""
        return self._values.get(name)

    def is_null(self, name: str) -> bool:
        """Whether the file itself says null, which is not to say nothing."""
        return name in self._given and self._given[name] is None

    def size(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least 1, or `least`."""
        value = default if self.get(name) is None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_SIZE:
            self.refuse(name, "is missing" if value is None else f"must be a whole number of at least {least}")
            return 1
        return value

    def number(self, name: str) -> float:
        """A positive number."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            self.refuse(name, "is missing" if value is None else "must be a positive number")
            return 1.0
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; absent is false."""
        value = self.get(name)
        if value not in (None, True, False):
            self.refuse(name, "must be true or false")
        return bool(value)

    def layers(self, name: str, n_layers: int) -> list[Any] | None:
        """A list with an entry for each layer; None if there is none."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != n_layers:
            self.refuse(name, f"must be a list of num_hidden_layers = {n_layers}")
            return None
        return value

    def raise_if_any(self) -> None:
        """ConfigError with a line for each problem."""
        if self.problems:
            raise ConfigError("\n".join(f"{self.place}: {problem}" for problem in self.problems))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
