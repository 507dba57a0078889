"""How the parameters of a rack start: biases, initial values, adapters, and what is frozen."""

from __future__ import annotations

import torch
from torch import nn

from models.adapters import AdaptedLinear, Adapter, is_adapter, replace
from models.parameters import INITS
from models.settings import Settings

EMBEDDING_STD = 0.02


def set_biases(settings: Settings) -> None:
    """Give linears a bias, or take it, as their settings say; one that is part of a formula stays."""
    for name, linear in settings.linears.items():
        bias = settings.of(f"{name}.weight").bias
        if bias and linear.bias is None:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
        elif bias is False and not getattr(linear.bias, "keep_init", False):
            linear.bias = None  # type: ignore[assignment]


@torch.no_grad()
def initialise(settings: Settings) -> None:
    """Biases of linears at zero, embeddings from N(0, 0.02), the rest as its layers start, where no `init` says otherwise.

    Parameters whose start is part of a mixer's definition (mamba's time steps) carry `keep_init` and are left alone, unless a
    glob names them.
    """
    rack, n_blocks = settings.rack, len(settings.rack.blocks())
    for linear in settings.linears.values():
        if linear.bias is not None and not getattr(linear.bias, "keep_init", False):
            nn.init.zeros_(linear.bias)
    # Embeddings last: a seed then gives a rack's linears the same weights whatever its vocabulary.
    for name in sorted(dict(rack.named_parameters()), key=lambda name: name.startswith("embedding.")):
        parameter, init = rack.get_parameter(name), settings.init_of(name)
        if parameter.is_meta:
            continue  # nothing to fill, and what computes its values elsewhere could not be copied
        if init is not None:
            INITS.build(init, n_blocks=n_blocks)(parameter)
        elif name == "embedding.weight":
            nn.init.normal_(parameter, std=EMBEDDING_STD)


def adapt(settings: Settings) -> None:
    """Put adapters on the linears whose settings have `lora`."""
    for name, linear in settings.linears.items():
        lora = settings.of(f"{name}.weight").lora
        if lora is None or not lora.apply:
            continue
        sizes = {"rank": lora.rank, "alpha": lora.alpha or lora.rank, "dropout": lora.dropout, "rslora": lora.rslora}
        adapter = Adapter(linear.in_features, linear.out_features, **sizes)  # type: ignore[arg-type]
        replace(settings.rack, name, AdaptedLinear(linear, {"lora": adapter}))


def freeze(settings: Settings) -> None:
    """Leave in every parameter its `lr_scale` and `weight_decay`, where they say something; with a scale of 0 no gradient.

    A tied weight is the embedding's, whatever is said of the head. The norms in a head are the rack's `norm`, so they have the
    scale of both. Linears with adapters are frozen.
    """
    adapted = tuple(f"{name}." for name, module in settings.rack.named_modules() if isinstance(module, AdaptedLinear))
    for name, parameter in settings.rack.named_parameters():
        setting = settings.of(name)
        is_frozen = (setting.lora is not None and setting.lora.freeze_others is not False) or name.startswith(adapted)
        scale = 0.0 if is_frozen and not is_adapter(name) else setting.lr_scale
        if scale != 1.0:
            parameter.lr_scale = scale  # type: ignore[attr-defined]
        if setting.weight_decay is not None:
            parameter.weight_decay = setting.weight_decay  # type: ignore[attr-defined]
        parameter.requires_grad_(scale != 0.0)
