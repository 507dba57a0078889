"""The dimension `latency_ms`: milliseconds as the latency table has them, which `python -m search profile` measures."""

from search.budget.dimensions.shared.dimension import Dimension, Piece


class LatencyMs(Dimension):
    """The milliseconds of a measured latency table."""

    label, axis_label, column = "ms", "milliseconds", 5
    number_format = ",.4g"
    needs_latency_table, is_compared = True, False

    def price(self, piece: Piece) -> float:
        """As measured."""
        return piece.milliseconds
