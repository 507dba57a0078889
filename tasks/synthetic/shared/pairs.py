"""Key-value pairs of varying size: which of them a sequence shows, and the sequence they make."""

from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Pairs drawn for each instance; the first is the probe, the others may be shown, in their order.

    keys [n, pairs, key places] and values [n, pairs, value places], of which key_sizes and value_sizes [n, pairs] are in use;
    first [n, pairs]: the first pair that has the same key, whose value counts.
    """

    keys: np.ndarray
    values: np.ndarray
    key_sizes: np.ndarray
    value_sizes: np.ndarray
    first: np.ndarray


class Slots(NamedTuple):
    """Places of a sequence [n, slots]: the pair in each, if it is there at all, and if its value was shown before."""

    pairs: np.ndarray
    is_there: np.ndarray
    is_repeated: np.ndarray


def fill_slots(pairs: Pairs, probe_start: np.ndarray, end: np.ndarray) -> Slots:
    """Show the pairs that start before `end` [n, 1], the probe in the first slot that starts at `probe_start` [n, 1] or later.

    The probe takes no slot where its key has come up before, or where no such slot starts before `end`.
    """
    sizes = pairs.key_sizes + pairs.value_sizes
    n_drawn = pairs.first.shape[1] - 1
    slots = np.arange(n_drawn + 1)
    chosen = pairs.first[:, 1:]
    starts = _starts(sizes, chosen)
    probe_slot = (starts < probe_start).sum(axis=1, keepdims=True)
    own_slot = np.where((chosen == 0).any(axis=1), (chosen == 0).argmax(axis=1), n_drawn)[:, None]
    starts_in_time = np.take_along_axis(starts, np.minimum(probe_slot, n_drawn - 1), axis=1) < end
    is_inserted = starts_in_time & (probe_slot < n_drawn) & (probe_slot <= own_slot)
    # All pairs together reach the end, so a probe behind them is not there.
    probe_slot = np.where(is_inserted, probe_slot, n_drawn)

    drawn = np.where(slots == probe_slot, 0, slots + (slots < probe_slot))
    chosen = np.take_along_axis(pairs.first, drawn, axis=1)
    is_repeated = (drawn != chosen) & (is_inserted | (slots != own_slot))
    return Slots(chosen, _starts(sizes, chosen) < end, is_repeated)


def _starts(sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    shown = np.take_along_axis(sizes, chosen, axis=1)
    return np.cumsum(shown, axis=1) - shown


def write(pairs: Pairs, slots: Slots, time: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """The sequences [n, time], padded on the left, and where they show the value of a repeated pair [n, time]."""
    row, slot = np.nonzero(slots.is_there)
    pair = slots.pairs[row, slot]
    keys, values = pairs.keys[row, pair], pairs.values[row, pair]
    key_sizes, value_sizes = pairs.key_sizes[row, pair], pairs.value_sizes[row, pair]
    is_key = np.arange(keys.shape[1]) < key_sizes[:, None]
    is_value = np.arange(values.shape[1]) < value_sizes[:, None]
    is_used = np.concatenate([is_key, is_value], axis=1)
    is_supervised = np.concatenate([np.zeros_like(is_key), is_value & slots.is_repeated[row, slot, None]], axis=1)

    lengths = np.bincount(row, key_sizes + value_sizes, minlength=len(pairs.first))
    is_written = np.arange(time) >= time - lengths[:, None]
    tokens = np.full(is_written.shape, pad)
    tokens[is_written] = np.concatenate([keys, values], axis=1)[is_used]
    supervised = np.zeros_like(is_written)
    supervised[is_written] = is_supervised[is_used]
    return tokens, supervised
