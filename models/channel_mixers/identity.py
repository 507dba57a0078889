"""No mixing of channels: every position passes as it is."""

from torch import Tensor

from models.rack.contracts import ChannelMixer


class Identity(ChannelMixer):
    """y = x. In a block it adds the normalised input to the residual stream, where null adds nothing."""

    def __init__(self, d_model: int) -> None:
        del d_model  # there is nothing to size
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] -> the same."""
        return x

    def flops(self, seq_len: int) -> int:  # noqa: ARG002
        """Nothing is multiplied."""
        return 0
