"""Initial values of a rack's parameters, their biases and adapters, and which of them are frozen."""

import torch
from torch import nn

from models.assembly.parameter_settings import ParameterSettings
from models.linears.adapters import Adapter, adapters_of, replace, set_bias
from models.linears.convert import with_adapters
from models.spec.parameters import INITS

EMBEDDING_STD = 0.02


def set_biases(settings: ParameterSettings) -> None:
    """Give linears a bias, or take it, as their settings say; one that is part of a formula stays."""
    for name, linear in settings.linears.items():
        bias = settings.of(f"{name}.weight").bias
        if bias or (bias is False and not getattr(linear.bias, "keep_init", False)):
            set_bias(linear, has_bias=bias)


@torch.no_grad()
def initialise(settings: ParameterSettings) -> None:
    """Biases of linears at zero, embeddings from N(0, 0.02), the rest as its layers start, where no `init` says otherwise.

    Parameters whose start is part of a mixer's definition (mamba's time steps) carry `keep_init` and are left alone, unless a
    glob names them.
    """
    rack, n_blocks = settings.rack, len(settings.rack.blocks())
    for linear in settings.linears.values():
        if linear.bias is not None and not getattr(linear.bias, "keep_init", False):
            nn.init.zeros_(linear.bias)
    # Embeddings last: a seed then gives a rack's linears the same weights whatever its vocabulary.
    for name in sorted(dict(settings.parameters()), key=lambda name: name.startswith("embedding.")):
        parameter, init = rack.get_parameter(name), settings.init_of(name)
        if parameter.is_meta:
            continue  # nothing to fill, and what computes its values elsewhere could not be copied
        if init is not None:
            INITS.build(init, n_blocks=n_blocks)(parameter)
        elif name == "embedding.weight":
            nn.init.normal_(parameter, std=EMBEDDING_STD)


def adapt(settings: ParameterSettings) -> None:
    """Put on every linear the adapters that its settings name and it has not got; they stand in the order of the settings."""
    like = settings.rack.embedding.weight
    for name, linear in settings.linears.items():
        loras = {key: lora for key, lora in settings.of(f"{name}.weight").loras.items() if lora.apply}
        there, made = adapters_of(linear), {}
        for key, lora in loras.items():
            if key in there:
                there[key].tune(**lora.tuning(there[key].rank))
            else:
                rank = lora.rank_at(linear.in_features, linear.out_features)
                made[key] = Adapter(linear.in_features, linear.out_features, rank=rank, **lora.tuning(rank)).to(like)
        if made:
            adapted = with_adapters(linear, made)
            adapted.adapters = nn.ModuleDict({key: adapted.adapters[key] for key in loras})
            replace(settings.rack, name, adapted)


def freeze(settings: ParameterSettings) -> None:
    """Leave in every parameter its `lr_scale` and `weight_decay`, where they say something; with a scale of 0 no gradient.

    A tied weight is the embedding's, whatever is said of the head. The norms in a head are the rack's `norm`, so they have the
    scale of both. What an earlier call has left goes.
    """
    for name, parameter in settings.parameters():
        setting = settings.of(name)
        scale = settings.scale_of(name, setting)
        for mark, value, unset in (("lr_scale", scale, 1.0), ("weight_decay", setting.weight_decay, None)):
            if value != unset:
                setattr(parameter, mark, value)
            elif hasattr(parameter, mark):
                delattr(parameter, mark)
        parameter.requires_grad_(scale != 0.0)
