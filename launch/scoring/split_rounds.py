"""Splits a round of placements so that shared prefixes stay together and every worker walks about as many trie nodes."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from models import Placement


def split(placements: Sequence[Placement], n: int) -> list[list[Placement]]:
    """At most `n` runs of the placements in lexicographic order, the longest of which has as few trie nodes as can be.

    A trie node is a prefix with one more name: what the walk computes once. Placements may not appear twice.
    """
    ordered = sorted(placements)
    if not ordered:
        return []
    n_slots = len(ordered[0])
    new_nodes = [n_slots, *(n_slots - _common(before, after) for before, after in pairwise(ordered))]

    def is_enough(limit: int) -> bool:
        return len(_cuts(new_nodes, n_slots, limit)) <= n

    starts = _cuts(new_nodes, n_slots, bisect_left(range(sum(new_nodes)), True, lo=n_slots, key=is_enough))
    return [ordered[start:end] for start, end in zip(starts, [*starts[1:], len(ordered)], strict=True)]


def _cuts(new_nodes: Sequence[int], n_slots: int, limit: int) -> list[int]:
    """Where runs of at most `limit` nodes start; the first placement of a run shares nothing."""
    starts, size = [0], n_slots
    for index, n_new in enumerate(new_nodes[1:], start=1):
        if size + n_new > limit:
            starts.append(index)
            size = n_slots
        else:
            size += n_new
    return starts


def _common(before: Placement, after: Placement) -> int:
    """How many names two placements share from the first on."""
    return next((index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other), len(before))
