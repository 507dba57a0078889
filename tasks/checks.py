"""Checks of a task's options; each message says the rule, the value, and what would be right."""

from numbers import Integral
from typing import get_args

from tasks.task import Split

SPLITS: tuple[Split, ...] = get_args(Split)


def check_integers(*, minimum: int, **options: object) -> None:
    """Raise unless each option is an integer of at least `minimum`."""
    for name, value in options.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name} must be an integer, at least {minimum}; got {value!r}")


def check_flags(**options: object) -> None:
    """Raise unless each option is a bool."""
    for name, value in options.items():
        if type(value) is not bool:
            raise ValueError(f"{name} must be true or false; got {value!r}")


def check_split(split: str) -> None:
    """Raise for a split that does not exist."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")


def check_noise(*, frac_noise: object, noise_vocab_size: int) -> None:
    """Raise unless the noise is a fraction in [0, 1) and has tokens to be drawn from."""
    if not isinstance(frac_noise, int | float) or isinstance(frac_noise, bool) or not 0 <= frac_noise < 1:
        raise ValueError(f"frac_noise must be a number with 0 <= frac_noise < 1; got {frac_noise!r}")
    if frac_noise > 0 and noise_vocab_size == 0:
        raise ValueError(f"frac_noise={frac_noise} needs noise tokens: noise_vocab_size must be at least 1; got 0")
