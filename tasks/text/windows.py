"""Cuts documents into windows of fixed length, so that every token is a target exactly once."""

from collections.abc import Sequence

import numpy as np

from tasks.task import IGNORED, Examples
from tasks.text.shards import TextShard


class Windows:
    """The windows of `seq_len` tokens into which documents are cut, counted through all shards of a split.

    A document is its tokens between `start` and a separator. Window i of it has as inputs the tokens [i * seq_len,
    (i + 1) * seq_len) of that row, and as targets the ones that follow: from the first token, asked at `start`, to the separator
    after the last, which the shards hold.
    What a document's last window lacks is padded with zeros that are not asked.
    """

    def __init__(self, shards: Sequence[TextShard], seq_len: int, start: int) -> None:
        self._shards, self._seq_len, self._start = shards, seq_len, start
        self._reach = np.arange(seq_len + 1)
        offsets = [shard.offsets for shard in shards]
        none = np.empty(0, dtype=np.int64)
        self._begins = np.concatenate([none, *(own[:-1] for own in offsets)])  # where documents begin in their shards
        self._lengths = np.concatenate([none, *map(np.diff, offsets)])
        self._first_windows = np.cumsum(np.concatenate([[0], -(-self._lengths // seq_len)]))
        self._first_documents = np.cumsum([0, *(len(own) - 1 for own in offsets)])

    def __len__(self) -> int:
        return int(self._first_windows[-1])

    def gather(self, chosen: np.ndarray) -> Examples:
        """The windows with the numbers [n]."""
        documents = np.searchsorted(self._first_windows, chosen, side="right") - 1
        before = (chosen - self._first_windows[documents]) * self._seq_len  # tokens of the document
        tokens = self._tokens(documents, self._begins[documents] + before - 1)
        tokens[before == 0, 0] = self._start
        inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        left = self._lengths[documents] - before
        if len(short := np.flatnonzero(left < self._seq_len)):
            is_padding = self._reach[:-1] >= left[short, None]
            inputs[short] = np.where(is_padding, 0, inputs[short])
            targets[short] = np.where(is_padding, IGNORED, targets[short])
        return Examples(inputs=inputs, targets=targets)

    def _tokens(self, documents: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """One token more than a window has, from each place in a document's shard; beyond the shard there are any: [n, time]."""
        places = begins[:, None] + self._reach
        if len(self._shards) == 1:
            return self._shards[0].values.take(places, mode="clip").astype(np.int64)
        tokens = np.empty(places.shape, dtype=np.int64)
        numbers = np.searchsorted(self._first_documents, documents, side="right") - 1
        for number in np.unique(numbers):
            mine = numbers == number
            tokens[mine] = self._shards[number].values.take(places[mine], mode="clip")
        return tokens
