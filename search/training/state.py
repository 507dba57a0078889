"""TrainState: one model in training, its optimizer state, history, best weights, and its checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from search.training import checkpoint
from search.training.checkpoint import Checkpoint
from search.training.ranks import Ranks
from search.training.sharding import gathered, shared_out
from search.training.spec import TrainSpec

Status = Literal["running", "solved", "stopped", "finished", "diverged"]


class Batches(Protocol):
    """Training data: the batch of any step, as a pure function of the step, on the device."""

    def __getitem__(self, step: int, /) -> tuple[Any, ...]:
        """Inputs [batch, time] and targets [batch, time], then what gradients of the caller's own take beside them."""
        ...


@dataclass
class TrainState:
    """One model in training, and what became of it.

    `weight_decay` is on weights, not on vectors such as norms and biases, unless `decays_all`. `losses` holds the training loss
    of every step, NaN at those in `unsupervised` (from 0), whose batch had no supervised position. Without `keeps_best` the last
    weights are the only ones, where a copy would be too large. With `keeps_moments` the optimizer starts from `moments` (by
    parameter), and leaves its own there.

    A checkpoint also brings back `data` (fingerprints by name of what it began to learn from), `origins` (what a report says of
    its first weights), `loss_scale` with `n_finite_steps` since it changed (of products in float16), `saved_bytes` (what its
    first step kept for the backward pass) and `cache_counts` (rows and forward passes, of this process).
    """

    model: nn.Module
    batches: Batches
    lr: float
    weight_decay: float
    decays_all: bool = False
    status: Status = "running"
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    unsupervised: list[int] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    keeps_best: bool = True
    keeps_moments: bool = False
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    origins: dict[str, Any] = field(default_factory=dict)
    loss_scale: float | None = None
    n_finite_steps: int = 0
    saved_bytes: int | None = None
    cache_counts: dict[str, int] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    evaluations_without_gain: int = 0

    def latest_loss(self) -> dict[str, float]:
        """What a row tells of the steps since the one before: `train_loss`, the mean over those that asked for anything.

        NaN if none did; how many did not is told as `unsupervised_steps`, where there are any.
        """
        latest = self._latest_losses()
        n_unsupervised = len(self.losses) - self.step - len(latest)
        told = {"train_loss": sum(latest) / len(latest) if latest else math.nan}
        return told | ({"unsupervised_steps": n_unsupervised} if n_unsupervised else {})

    def _latest_losses(self) -> list[float]:
        left_out = set(self.unsupervised)
        return [loss for step, loss in enumerate(self.losses[self.step :], start=self.step) if step not in left_out]

    def record(self, row: dict[str, float], spec: TrainSpec, *, is_last: bool) -> None:
        """Take in one evaluation: keep the best weights, and decide whether to go on."""
        losses = [*self._latest_losses(), row["loss"]]
        self.history.append(row)
        self.step = int(row["step"])
        if not all(map(math.isfinite, losses)):
            self.status = "diverged"
            return
        peak = max((earlier[spec.stop_metric] for earlier in self.history[:-1]), default=-math.inf)
        self.evaluations_without_gain = 0 if row[spec.stop_metric] > peak else self.evaluations_without_gain + 1
        if not self.best or row[spec.select_metric] < self.best[spec.select_metric]:
            self.best = row
            if self.keeps_best:
                self.best_weights = {name: tensor.clone() for name, tensor in checkpoint.weights(self.model).items()}
        if spec.stop_at is not None and row[spec.stop_metric] > spec.stop_at:
            self.status = "solved"
        elif spec.patience is not None and self.evaluations_without_gain >= spec.patience:
            self.status = "stopped"
        elif is_last:
            self.status = "finished"


_JSON_FIELDS = (
    *("status", "step", "seconds", "unsupervised", "history", "best", "evaluations_without_gain"),
    *("data", "origins", "loss_scale", "n_finite_steps", "saved_bytes", "cache_counts"),
)


def save_members(
    kept: Checkpoint, members: Sequence[TrainState], optimizer: torch.optim.Optimizer, step: int, *, ranks: Ranks | None = None
) -> None:
    """Write everything that the run goes on from; all ranks call this, and the main one writes."""
    tensors: dict[str, Tensor] = {}
    for index, member in enumerate(members):
        tensors |= {f"{index}.model.{name}": tensor for name, tensor in checkpoint.weights(member.model).items()}
        tensors |= {f"{index}.best.{name}": tensor for name, tensor in member.best_weights.items()}
        tensors[f"{index}.losses"] = torch.tensor(member.losses, dtype=torch.float64)
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    tensors = gathered(tensors)
    if ranks is None or ranks.is_main:
        state = {"step": step, "members": [{name: getattr(member, name) for name in _JSON_FIELDS} for member in members]}
        kept.save(tensors, state)


def restore_members(
    kept: Checkpoint, members: Sequence[TrainState], optimizer: torch.optim.Optimizer, device: torch.device
) -> int:
    """Put members and optimizer back to where they were saved; the step, which is 0 if nothing is there that can be used."""
    found = kept.read(device)
    if found is None:
        return 0
    tensors, state = found
    for index, (member, saved) in enumerate(zip(members, state["members"], strict=True)):
        for name, value in saved.items():
            setattr(member, name, value)
        member.losses = tensors[f"{index}.losses"].tolist()
        checkpoint.load_weights(member.model, _below(f"{index}.model.", tensors))
        member.best_weights = _below(f"{index}.best.", tensors)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, moment = int(name.partition(".")[0]), name.partition(".")[2]
        whole = moment == "step"  # a count, and no piece of the parameter
        moments.setdefault(index, {})[moment] = tensor if whole else shared_out(tensor, like=parameters[index])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["step"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
