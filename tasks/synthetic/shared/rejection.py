"""Rejection sampling in batches that fit a processor's cache."""

from collections.abc import Callable

import numpy as np

from tasks.task import Examples

BATCH_NUMBERS = 2**17
"""Numbers held at a time, per array. The instances a generator gives depend on it: changing it changes every data set."""

Proposals = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_valid(draw: Callable[[int], Proposals], n_examples: int, time: int, *, width: int) -> Examples:
    """Collect valid instances until there are enough.

    Args:
        draw: `n` to inputs [n, time], targets [n, time] and is_valid [n]; instances that are not valid are drawn again.
        n_examples: how many are wanted.
        time: positions of an instance.
        width: numbers that `draw` holds for an instance, which limits how many it is asked for at a time.
    """
    inputs, targets = np.empty((2, n_examples, time), dtype=np.int64)
    n_drawn = 0
    while n_drawn < n_examples:
        batch_inputs, batch_targets, is_valid = draw(min(n_examples - n_drawn, max(1, BATCH_NUMBERS // width)))
        stop = n_drawn + int(is_valid.sum())
        inputs[n_drawn:stop] = batch_inputs[is_valid]
        targets[n_drawn:stop] = batch_targets[is_valid]
        n_drawn = stop
    return Examples(inputs=inputs, targets=targets)
