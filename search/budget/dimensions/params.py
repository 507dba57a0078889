"""The dimension `params`: what a rack has to learn: its parameters."""

from search.budget.dimensions.shared.dimension import Dimension, Piece


class Params(Dimension):
    """What a rack has to learn: its parameters."""

    label, axis_label, column = "params", "parameters", 1

    def price(self, piece: Piece) -> float:
        """Weights that are stored in few bits count as well."""
        return piece.count.n_parameters
