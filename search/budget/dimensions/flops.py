"""The dimension `flops`: the operations of a forward pass for each token."""

from search.budget.dimensions.shared.dimension import Dimension, Piece


class Flops(Dimension):
    """The operations of a forward pass for each token."""

    label, axis_label, column = "FLOPs/token", "FLOPs per token", 4
    is_compared = False

    def price(self, piece: Piece) -> float:
        """The mean over the positions of the context."""
        return piece.count.flops
