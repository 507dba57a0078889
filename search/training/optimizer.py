"""AdamW in groups by learning rate and decay; parameters without a gradient in a step keep their state."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from configs import ConfigError
from search.training.schedules import ScheduleSpec, learning_rate
from search.training.sharding import is_shared_out
from search.training.spec import TrainSpec
from search.training.state import TrainState


def make_optimizer(members: Sequence[TrainState], spec: TrainSpec) -> torch.optim.AdamW:
    """An optimizer with a group for each member and each `lr_scale` and weight decay of its parameters (`own_decay`).

    Frozen ones are in no group.

    A parameter without a gradient is passed over: no decay, no momentum, no moments, and its own count of steps. One of which a
    member brings `moments` goes on from them.
    """
    groups = [
        {
            "params": list(parameters.values()),
            "lr": member.lr,
            "weight_decay": member.weight_decay if decay is None else decay,
            "peak": member.lr,
            "scale": scale,
        }
        for member in members
        for (scale, decay), parameters in parameter_groups(member.model, decays_all=member.decays_all).items()
    ]
    if not groups:
        raise ConfigError("nothing to train: every parameter is frozen (lr_scale 0)")
    optimizer = torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, fused=True)
    for member in members:
        for name, parameter in member.model.named_parameters():
            if parameter.requires_grad and name in member.moments:
                found = member.moments[name]
                optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in found.items()}
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, schedule: ScheduleSpec, step: int, n_steps: int) -> None:
    """Give each group its learning rate of a step (the first is 0)."""
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * learning_rate(schedule, group["peak"], step, n_steps)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """As `torch.nn.utils.clip_grad_norm_`; on a CPU, where the norm is at hand, what is short enough is not multiplied by 1.

    Parameters without a gradient do not count.
    """
    chosen = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in chosen if parameter.grad is not None])
    is_at_hand = norm.device.type == "cpu" and not is_shared_out(norm)
    if is_at_hand and float(norm) + 1e-6 <= largest:
        return
    nn.utils.clip_grads_with_norm_(chosen, largest, norm)


DECAY_RULE = (
    "weight decay: the training's on weights of two or more dimensions; none on norms, biases, decays, time steps and other"
    " vectors, unless weight_decay is said of them or of what holds them"
)
DECAY_RULE_OF_MAD = "weight decay: the training's on every parameter, norms and biases too, as the MAD reference has it"


def own_decay(parameter: nn.Parameter, *, decays_all: bool = False) -> float | None:
    """The weight decay of a parameter: what is said of it or around it, else the training's (None), and 0 for vectors.

    A vector has one dimension, or none, or is one that its mixer writes as a matrix and marks with `decays = False`.
    `decays_all` counts no vectors out.
    """
    said: float | None = getattr(parameter, "weight_decay", None)
    is_vector = parameter.ndim < 2 or not getattr(parameter, "decays", True)
    return 0.0 if said is None and is_vector and not decays_all else said


def parameter_groups(model: nn.Module, *, decays_all: bool = False) -> dict[tuple[float, float | None], dict[str, nn.Parameter]]:
    """The parameters that are trained, by name, grouped by learning rate scale and weight decay (None: the training's)."""
    groups: dict[tuple[float, float | None], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = getattr(parameter, "lr_scale", 1.0), own_decay(parameter, decays_all=decays_all)
            groups.setdefault(key, {})[name] = parameter
    return groups


def keep_moments(optimizer: torch.optim.Optimizer, members: Sequence[TrainState]) -> None:
    """Leave with the members that keep them the moments of their parameters, and the steps that these are of."""
    for member in members:
        if member.keeps_moments:
            named = member.model.named_parameters()
            member.moments = {name: dict(optimizer.state[each]) for name, each in named if each in optimizer.state}
