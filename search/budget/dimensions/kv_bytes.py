"""The dimension `kv_bytes`: the bytes that attention's caches of one sequence take, which grow with the context."""

from search.budget.dimensions.shared.dimension import Dimension, Piece


class KvBytes(Dimension):
    """The bytes that attention's caches of one sequence take, which grow with the context."""

    label, axis_label, column = "KV bytes", "KV cache, bytes per sequence", 2

    def price(self, piece: Piece) -> float:
        """Keys and values, or whatever else grows."""
        return piece.count.cache * piece.n_bytes
