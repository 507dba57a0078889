"""What a claim comes to: rows of the table, judged from numbers alone, and the statistics that they are judged by."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

HOLDS, FAILS, NOT_MEASURED = "holds", "fails", "not measured here"


@dataclass(frozen=True)
class Finding:
    """A row of the table. `holds` None is of what this machine cannot measure, or was too short a run to say."""

    claim: str
    measured: str
    figure: str
    rule: str
    holds: bool | None

    @property
    def verdict(self):
        return NOT_MEASURED if self.holds is None else HOLDS if self.holds else FAILS


@dataclass(frozen=True)
class Claim:
    """`measure` makes numbers, plain values for JSON, with runs of the job; `judge` makes findings of the numbers alone.

    `tables` are Markdown tables of what stands behind the findings.
    """

    title: str
    measure: Callable[..., dict[str, Any]]
    judge: Callable[[dict[str, Any]], list[Finding]]
    tables: Callable[[dict[str, Any]], str] = lambda _: ""


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; NaN of a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def text_of(values: Sequence[float], form: str = ".4f") -> str:
    """The mean, and its standard error where there are several values."""
    error = standard_error(values)
    return f"{mean(values):{form}}" + ("" if math.isnan(error) else f" ± {error:{form.removeprefix('+')}}")


def differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Seed by seed: both have learnt from the same samples, and are measured by the same."""
    return [one - other for one, other in zip(first, second, strict=True)]


def excess(values: Sequence[float], reference: Sequence[float]) -> float:
    """How far the mean is above that of the reference, as a share of it."""
    return mean(values) / mean(reference) - 1


def falls(values: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(values))


def share_recovered(worse: float, better: float, reached: float) -> float:
    """Of the gap between two losses, how much a third has closed; NaN where there is no gap."""
    return (worse - reached) / (worse - better) if worse > better else math.nan


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
