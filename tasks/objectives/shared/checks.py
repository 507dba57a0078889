"""Checks of the options of objectives: the rule, the value, and what would be right."""

from collections.abc import Sequence


def check_share(**options: object) -> None:
    """Raise unless each option is a number in [0, 1]."""
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be a number with 0 <= {name} <= 1; got {value!r}")


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise unless the option is one of the names that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
