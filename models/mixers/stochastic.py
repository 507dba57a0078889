"""A mixer that is still to be chosen: the searchable layer of a supernet."""

from typing import Any

import torch
from torch import Tensor, nn

from models.rack.choice import Choice
from models.rack.contracts import Mixer


class Stochastic(Choice, Mixer):
    """One of several mixers, each with its own weights; null adds nothing to the residual stream.

    `main` is the one that runs unless another is activated. State, operations and the step form are those of the active mixer.
    """

    def __init__(self, d_model: int, *, mixers: dict[str, nn.Module | None], main: str) -> None:
        del d_model  # the mixers have got it
        super().__init__(mixers, main)

    @property
    def has_step(self) -> bool:  # type: ignore[override]
        """Whether the active mixer has a step form."""
        mixer = self._mixer()
        return mixer is None or mixer.has_step

    def initial_state(self, batch_size: int) -> Any:
        """That of the active mixer."""
        mixer = self._mixer()
        return None if mixer is None else mixer.initial_state(batch_size)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """That of the active mixer."""
        mixer = self._mixer()
        return (torch.zeros_like(x), state) if mixer is None else mixer.step(x, state)

    def state_size(self, seq_len: int) -> int:
        """That of the active mixer."""
        mixer = self._mixer()
        return 0 if mixer is None else mixer.state_size(seq_len)

    def flops(self, seq_len: int) -> int:
        """Those of the active mixer."""
        mixer = self._mixer()
        return 0 if mixer is None else mixer.flops(seq_len)

    def _mixer(self) -> Mixer | None:
        assert self.part is None or isinstance(self.part, Mixer)
        return self.part
