"""The dimension `state_bytes`: the bytes that recurrent states of one sequence take, whatever its length."""

from search.budget.dimensions.shared.dimension import Dimension, Piece


class StateBytes(Dimension):
    """The bytes that recurrent states of one sequence take, whatever its length."""

    label, axis_label, column = "state bytes", "recurrent state, bytes per sequence", 3

    def price(self, piece: Piece) -> float:
        """States of a fixed size."""
        return piece.count.state * piece.n_bytes
