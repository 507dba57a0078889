"""Counts of a cache: hits, misses, forward passes, bytes."""

from dataclasses import dataclass


@dataclass
class Statistics:
    """Counted since the cache was opened: rows found and not found by `hidden`, calls of the trunk, bytes moved and held."""

    hits: int = 0
    misses: int = 0
    forwards: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_held: int = 0

    @property
    def hit_rate(self) -> float:
        """Rows found among those asked for; 0 before any."""
        return self.hits / max(self.hits + self.misses, 1)
