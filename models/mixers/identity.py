"""No mixing: every position passes as it is."""

from torch import Tensor

from models.rack.contracts import Mixer


class Identity(Mixer):
    """y = x. In a block it adds the normalised input to the residual stream, where null adds nothing."""

    has_step = True

    def __init__(self, d_model: int) -> None:
        del d_model  # there is nothing to size
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d_model] -> the same."""
        return x

    def initial_state(self, batch_size: int) -> tuple[()]:  # noqa: ARG002
        """Nothing is kept."""
        return ()

    def step(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """[batch, d_model] -> the same."""
        return x, state

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0

    def flops(self, seq_len: int) -> int:  # noqa: ARG002
        """Nothing is multiplied."""
        return 0
