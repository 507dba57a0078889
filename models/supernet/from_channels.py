"""Starts a narrower channel mixer from a trained one: with those of its channels that matter most."""

import torch
from torch import Tensor, nn

from configs import ConfigError
from models.channel_mixers.mlp import MLP
from models.channel_mixers.swiglu import SwiGLU
from models.linears.convert import dense_state
from models.linears.quantised import QuantisedLinear
from models.rack.contracts import ChannelMixer

WITH_CHANNELS = (MLP, SwiGLU)
"""The kinds of which every channel is a row of each linear but `down`, and a column of that."""


@torch.no_grad()
def keep_channels(wide: ChannelMixer, target: ChannelMixer) -> str:
    """Give `target` as many channels of a trained mixer of its kind as it has, in their order; what was kept, as text.

    Those are kept that matter most: the size of what a channel reads (the norm of its row with its bias, in `up` and, where there
    is one, `gate`) times that of what it writes. Biases go where the target has them, and are zero where the trained one has
    none. What adapters add goes into the weights; the target's own are left alone.

    Raises:
        ConfigError: if the target is of another kind or activation, or wider, or its weights are stored in few bits.
    """
    if difference := _difference(wide, target):
        raise ConfigError(f"{type(target).__name__} cannot start from this {type(wide).__name__}: {difference}")
    trained = dense_state(wide)
    kept = _scores(trained).argsort(descending=True, stable=True)[: target.d_ff].sort().values
    linears = {name: linear for name, linear in target.named_children() if isinstance(linear, nn.Linear)}
    for name, linear in linears.items():
        weight, bias = trained[f"{name}.weight"], trained.get(f"{name}.bias")
        linear.weight.copy_(weight[:, kept] if name == "down" else weight[kept])
        if linear.bias is not None:
            linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias if name == "down" else bias[kept])
    dropped = [f"{name}.bias" for name, linear in linears.items() if f"{name}.bias" in trained and linear.bias is None]
    return f"{target.d_ff} of {wide.d_ff}" + (f"; dropped {', '.join(dropped)}" if dropped else "")


def _scores(trained: dict[str, Tensor]) -> Tensor:
    """How much each channel matters: [d_ff]."""
    scores = trained["down.weight"].float().norm(dim=0)
    for name in ("gate", "up"):
        if f"{name}.weight" in trained:
            rows = trained[f"{name}.weight"].float()
            bias = trained.get(f"{name}.bias", rows.new_zeros(len(rows))).float()
            scores = scores * torch.cat([rows, bias[:, None]], dim=1).norm(dim=1)
    return scores


def _difference(wide: ChannelMixer, target: ChannelMixer) -> str | None:
    if not isinstance(wide, WITH_CHANNELS) or type(wide) is not type(target):
        return "it is of another kind"
    ours, theirs = (getattr(mixer, "activation", None) for mixer in (target, wide))
    if ours != theirs:
        return f"activation = {ours}, not {theirs}"
    if target.d_ff > wide.d_ff:
        return f"d_ff = {target.d_ff}, more than {wide.d_ff}"
    if any(isinstance(linear, QuantisedLinear) for linear in target.modules()):
        return "its weights are stored in few bits"
    return None
