"""Limits of a budget: how they are written, and what they say about the choices."""

import math
import re
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Context, Decimal

import numpy as np

from configs import ConfigError
from search.budget.program import ConstraintRow

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d+)?(?:[eE][+-]?\d+)?%?"
_RANGE = re.compile(rf"({_NUMBER})?\s*\.\.\s*({_NUMBER})?")
_COMPARISON = re.compile(rf"(<=|>=)?\s*({_NUMBER})")


@dataclass(frozen=True)
class Limit:
    """`low <= base + what the choices add <= high`, for the layers of a mixer or for a cost.

    `key` is what is limited, a name or a cost; `weights` [n_slots, n_names] is what each choice adds.
    """

    key: str
    low: float
    high: float
    weights: np.ndarray = field(repr=False, compare=False)
    base: float = 0.0
    is_cost: bool = False
    unit: str = ""

    @property
    def row(self) -> ConstraintRow:
        """The limit on what the choices add."""
        return ConstraintRow(self.weights, self.low - self.base, self.high - self.base)

    def text(self) -> str:
        """Such as `attention = 4`, `kv_bytes <= 1,048,576`, `energy <= 40 mJ`."""
        return f"{self.key} {self.bounds()} {self.unit}".rstrip()

    def bounds(self) -> str:
        """The text without key and unit."""
        if self.low == self.high and not self.is_cost:
            return f"= {number_text(self.low)}"
        if self.high == math.inf:
            return f">= {number_text(self.low)}"
        return f"<= {number_text(self.high)}" if self.low == 0 else f"{number_text(self.low)}..{number_text(self.high)}"


def number_text(value: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """1234567.0 as `1,234,567`; five digits, or up to the point. The rounding is one of those of `decimal`."""
    if math.isinf(value):
        return "inf"
    number = Decimal(repr(float(value)))
    place = 0 if float(value).is_integer() or abs(value) >= 1e4 else number.adjusted() - 4
    text = f"{number.quantize(Decimal(1).scaleb(place), rounding, Context(prec=400)):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_count(key: str, value: object) -> tuple[int, int]:
    """Layers of a mixer: `2` is exactly so many, `"<=2"` at most, `">=2"` at least, `"1..3"` a range."""
    low, high = _parsed(key, value, "2 (exactly), '<=2', '>=2' or '1..3'", is_exact=True, whole=None)
    for bound in (low, high):
        if math.isfinite(bound) and not float(bound).is_integer():
            raise ConfigError(f"budget: {key}: {value!r}: layers are counted in whole numbers")
    return low, high  # type: ignore[return-value]


def parse_cost(key: str, value: object, whole: float) -> tuple[float, float]:
    """A cost: a number is at most so much, `"60%"` that share of the all-main rack's (`whole`), `"lo..hi"` a range."""
    return _parsed(
        key, value, "a number (at most), '60%' of the all-main rack, '>=1e6' or '1e6..2e6'", is_exact=False, whole=whole
    )


def _parsed(key: str, value: object, expected: str, *, is_exact: bool, whole: float | None) -> tuple[float, float]:
    def number(text: str) -> float:
        if not math.isfinite(float(text.rstrip("%").replace(",", ""))):
            raise ConfigError(f"budget: {key}: {value!r}: that is beyond all numbers")
        if not text.endswith("%"):
            return float(text.replace(",", ""))
        if whole is None:
            raise ConfigError(f"budget: {key}: {value!r}: a share is for costs; expected {expected}")
        return float(text[:-1].replace(",", "")) / 100 * whole

    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if (match := _RANGE.fullmatch(text)) and any(match.groups()):
        low, high = (number(part) if part else default for part, default in zip(match.groups(), (0.0, math.inf), strict=True))
        if low > high:
            raise ConfigError(f"budget: {key}: {value!r}: the range is empty, its start lies above its end")
        return low, high
    if match := _COMPARISON.fullmatch(text):
        bound = number(match[2])
        is_low = match[1] == ">=" or (match[1] is None and is_exact)
        is_high = match[1] == "<=" or match[1] is None
        return bound if is_low else 0.0, bound if is_high else math.inf
    raise ConfigError(f"budget: {key}: {value!r}: expected {expected}")
