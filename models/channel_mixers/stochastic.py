"""A channel mixer that is still to be chosen: widths, experts, or none."""

from torch import nn

from models.rack.choice import Choice
from models.rack.contracts import ChannelMixer


class Stochastic(Choice, ChannelMixer):
    """One of several channel mixers, each with its own weights; null is a layer without one.

    `main` is the one that runs unless another is activated.
    """

    def __init__(self, d_model: int, *, mixers: dict[str, nn.Module | None], main: str) -> None:
        del d_model  # the channel mixers have got it
        super().__init__(mixers, main)

    def flops(self, seq_len: int) -> int:
        """Those of the active channel mixer."""
        part = self.part
        return part.flops(seq_len) if isinstance(part, ChannelMixer) else 0
