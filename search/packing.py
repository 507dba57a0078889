"""Several models of one architecture, run as one model over stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


class Pack:
    """Runs the models on one batch, or each on its own; call it like a model.

    The models stay ordinary modules with their own parameters; each call stacks the parameters along a leading model dimension
    and maps the first model's function over it, so that every operation is one kernel for all models. Gradients flow
    back to the single models, and a model that is finished is simply left out of the next pack. Buffers are the first model's.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self._names = [name for name, _ in models[0].named_parameters()]

    def __call__(self, inputs: Tensor) -> Tensor:
        """[batch, time] for all models, or [models, batch, time] -> logits [models, batch, time, vocab_size]."""
        if len(self.models) == 1:
            return self.models[0](inputs if inputs.dim() == 2 else inputs[0]).unsqueeze(0)
        base = self.models[0]
        parameters = [dict(model.named_parameters()) for model in self.models]
        stacked = {name: torch.stack([single[name] for single in parameters]) for name in self._names}

        def run(single: dict[str, Tensor], batch: Tensor) -> Tensor:
            return functional_call(base, single, (batch,))

        # torch has no batching rule for its fused attention on a CPU; the plain form is one product for all models.
        with sdpa_kernel(SDPBackend.MATH) if inputs.device.type == "cpu" else nullcontext():
            return vmap(run, in_dims=(0, 0 if inputs.dim() == 3 else None), randomness="different")(stacked, inputs)
