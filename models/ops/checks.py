"""Checks of sizes that a user chose: the rule, the value and what would be right."""

import math


def split_evenly(total_name: str, total: int, *, parts_name: str, parts: int) -> int:
    """Size of each of `parts` equal shares of `total`; a ValueError that names both if there is no such size."""
    if parts < 1 or total % parts:
        divisors = ", ".join(map(str, _divisors(total)))
        raise ValueError(f"{parts_name} = {parts} must divide {total_name} = {total}: choose one of {divisors}")
    return total // parts


def _divisors(total: int) -> list[int]:
    """Those up to a million, and their counterparts: in sizes that can be built there are no others."""
    small = [number for number in range(1, min(math.isqrt(total), 10**6) + 1) if total % number == 0]
    return sorted({*small, *(total // number for number in small)})


def at_least(minimum: int, **sizes: int) -> None:
    """Refuse any size below `minimum`, by name."""
    for name, size in sizes.items():
        if size < minimum:
            raise ValueError(f"{name} = {size} must be at least {minimum}")


def scaled(size_name: str, size: int, **factor: float) -> int:
    """A size times a factor given by its name; a ValueError unless that is a whole number of at least 1."""
    ((name, value),) = factor.items()
    product = size * value
    if not 1 <= product < 2**53 or abs(product - round(product)) > 1e-6:
        raise ValueError(f"{name} = {value} times {size_name} = {size} must be a whole number of at least 1, not {product:g}")
    return round(product)


def above(minimum: float, **sizes: float) -> None:
    """Refuse any size that is not above `minimum`, by name."""
    for name, size in sizes.items():
        if size <= minimum:
            raise ValueError(f"{name} = {size} must be above {minimum}")
