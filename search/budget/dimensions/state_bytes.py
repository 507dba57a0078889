"""The dimension `state_bytes`: the bytes that are held of one sequence beside caches, whatever its length."""

from search.budget.dimensions.shared.dimension import Dimension, Piece


class StateBytes(Dimension):
    """The bytes that are held of one sequence beside caches, whatever its length: states, last inputs of convolutions."""

    label, axis_label, column = "state bytes", "recurrent state, bytes per sequence", 3

    def price(self, piece: Piece) -> float:
        """As they are held, in float32: the budget's dtype is that of caches."""
        return piece.count.state_bytes
