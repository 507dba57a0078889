"""Several models of one architecture, run as one model over stacked parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from models.rack.reports import collecting, pass_on


class Pack:
    """Runs the models on one batch, or each on its own; call it like a model.

    The models stay ordinary modules with their own parameters; each call stacks the parameters along a leading model dimension
    and maps the first model's function over it, so that every operation is one kernel for all models. Gradients flow
    back to the single models, buffers that a call in training changes are written back, and a model that is finished is
    simply left out of the next pack.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self._parameters = [_by_module(model, of="named_parameters") for model in models]
        self._buffers = [_by_module(model, of="named_buffers") for model in models]

    def __call__(self, inputs: Tensor) -> Tensor:
        """[batch, time] for all models, or [models, batch, time] -> logits [models, batch, time, vocab_size].

        What the models' parts report goes on to whoever collects it around the call, each value [models].
        """
        logits, losses, metrics = self._run(inputs)
        pass_on(losses, metrics)
        return logits

    def _run(self, inputs: Tensor) -> _Found:
        if len(self.models) == 1:
            single = inputs if inputs.dim() == 2 else inputs[0]
            return tree_map(lambda tensor: tensor.unsqueeze(0), _with_reports(lambda: self.models[0](single)))
        base = self.models[0]
        parameters, buffers = _stack(self._parameters), _stack(self._buffers)

        def run(single: dict[str, Tensor], batch: Tensor) -> _Found:
            # torch's own handling of ties puts stacked tensors back into a module that stands at two places.
            return _with_reports(lambda: functional_call(base, single, (batch,), tie_weights=False))

        # torch has no batching rule for its fused attention on a CPU; the plain form is one product for all models.
        with sdpa_kernel(SDPBackend.MATH) if inputs.device.type == "cpu" else nullcontext():
            in_dims = (0, 0 if inputs.dim() == 3 else None)
            found = vmap(run, in_dims=in_dims, randomness="different")(parameters | buffers, inputs)
        if base.training:
            for index, own in enumerate(self._buffers):
                for name, buffer in own.items():
                    buffer.copy_(buffers[name][index])
        return found


_Found = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def _with_reports(call: Callable[[], Tensor]) -> _Found:
    """Logits, and the losses and metrics that were reported meanwhile."""
    with collecting() as found:
        logits = call()
    return logits, found.losses, found.metrics


def _by_module(model: nn.Module, *, of: str) -> dict[str, Tensor]:
    """Parameters or buffers by name: a tied one under each module that holds it, those of a shared module once."""
    return {
        f"{place}.{name}" if place else name: tensor
        for place, module in model.named_modules()
        for name, tensor in getattr(module, of)(recurse=False)
    }


def _stack(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([single[name] for single in tensors]) for name in tensors[0]}
