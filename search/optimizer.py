"""AdamW over the parameters of members, in groups that share a learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from configs import ConfigError
from search.member import Member, TrainSpec
from search.schedules import ScheduleSpec, learning_rate


def make_optimizer(members: Sequence[Member], spec: TrainSpec) -> torch.optim.AdamW:
    """An optimizer with a group for each member and each `lr_scale` of its parameters; frozen ones are in no group.

    A parameter without a gradient is passed over: no decay, no momentum, no moments, and its own count of steps.
    """
    groups = [
        {"params": parameters, "lr": member.lr, "weight_decay": member.weight_decay, "peak": member.lr, "scale": scale}
        for member in members
        for scale, parameters in _by_scale(member.model).items()
    ]
    if not groups:
        raise ConfigError("nothing to train: every parameter is frozen (lr_scale 0)")
    return torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, schedule: ScheduleSpec, step: int, n_steps: int) -> None:
    """Give each group its learning rate of a step (the first is 0)."""
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * learning_rate(schedule, group["peak"], step, n_steps)


def _by_scale(model: nn.Module) -> dict[float, list[nn.Parameter]]:
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(getattr(parameter, "lr_scale", 1.0), []).append(parameter)
    return groups
