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
        lengths = [np.diff(shard.offsets) for shard in shards]
        self._first_windows = np.cumsum(np.concatenate([[0], *(-(-length // seq_len) for length in lengths)]))
        self._first_documents = np.cumsum([0, *map(len, lengths)])

    def __len__(self) -> int:
        return int(self._first_windows[-1])

    def gather(self, chosen: np.ndarray) -> Examples:
        """The windows with the numbers [n]."""
        documents = np.searchsorted(self._first_windows, chosen, side="right") - 1
        places = chosen - self._first_windows[documents]
        shard_numbers = np.searchsorted(self._first_documents, documents, side="right") - 1
        tokens = np.zeros((len(chosen), self._seq_len + 1), dtype=np.int64)
        supervised = np.zeros((len(chosen), self._seq_len), dtype=bool)
        for number in np.unique(shard_numbers):
            mine = shard_numbers == number
            local = documents[mine] - self._first_documents[number]
            tokens[mine], supervised[mine] = self._of_shard(self._shards[number], local, places[mine])
        return Examples(inputs=np.where(supervised, tokens[:, :-1], 0), targets=np.where(supervised, tokens[:, 1:], IGNORED))

    def _of_shard(self, shard: TextShard, documents: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = shard.offsets[documents] + places * self._seq_len - 1
        index = first[:, None] + np.arange(self._seq_len + 1)
        tokens = shard.values[index.clip(0, len(shard.values) - 1)].astype(np.int64)
        tokens[places == 0, 0] = self._start
        return tokens, index[:, 1:] < shard.offsets[documents + 1][:, None]
