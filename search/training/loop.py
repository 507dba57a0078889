"""The one training loop: one model, or several of one architecture in step, each with its own rate and decay."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from models.rack.reports import collecting
from search.training.batches import asks_anything
from search.training.checkpoint import Checkpoint
from search.training.devices import autocast, float32_products, reseed, resolve_device
from search.training.metrics import token_losses
from search.training.optimizer import clip_gradients, keep_moments, make_optimizer, set_rates
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.schedules import learning_rate
from search.training.spec import TrainSpec
from search.training.state import Batches, TrainState, restore_members, save_members

CHECKPOINT_SECONDS = 20.0

Gradients = Callable[[Pack, Sequence[TrainState], int], Tensor]
EvaluateModels = Callable[[Pack, Sequence[TrainState]], dict[str, Tensor]]
OnEvaluation = Callable[[TrainState, dict[str, float]], None]


def train(
    members: Sequence[TrainState],
    spec: TrainSpec,
    *,
    n_steps: int,
    eval_every: int,
    evaluate: EvaluateModels,
    gradients: Gradients | None = None,
    seed: int = 0,
    on_evaluation: OnEvaluation | None = None,
    on_step: Callable[[int], bool] | None = None,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Train the members in step until each has stopped; their fields hold what came out.

    Members that have stopped leave the pack, and their weights do not move any more; nor do weights that a step left without a
    gradient: neither by decay nor by momentum. A step whose batch has no supervised position moves none, and counts in no mean
    loss. Nothing in a step waits for the device; every `eval_every` steps there is one
    evaluation, one transfer and, now and then, one checkpoint, from which the same call goes on exactly: batches, rates and
    dropout are functions of the seed and the step.

    Args:
        members: models of one architecture, on the spec's device, each with its own batches (or all with the same).
        spec: optimizer, schedule, stop rule, device.
        n_steps: the last step; schedules run over it.
        eval_every: steps between evaluations; there is one after the last step too.
        evaluate: metrics of a pack, each [members], for the members still running.
        gradients: leaves the gradients of a step in the running members' parameters and returns their losses [members]; where
            nothing was asked of a member it leaves none, and the step in `unsupervised`. None is the mean cross entropy of each
            member's batch, and what the model's parts report beside it.
        seed: of dropout.
        on_evaluation: called for each running member with its newest history row.
        on_step: called after each step with the number of steps done; where it is false, the run is kept and ends there.
        checkpoint: where to resume from, if there is something to, and to write to.
        checkpoint_every: steps between checkpoints; None writes one after an evaluation, every CHECKPOINT_SECONDS or so.
        ranks: the processes that train these members together; None is this one alone.
    """
    device, ranks = resolve_device(spec.device), ranks or Ranks()
    gradients = gradients or partial(batch_gradients, spec=spec)
    for member in members:
        member.model.train()
    optimizer = make_optimizer(members, spec)
    step, goes_on, pack = 0, True, None
    losses: list[Tensor] = []
    if checkpoint is not None:
        step = restore_members(checkpoint, members, optimizer, device)
    saved_at = settled_at = time.monotonic()
    drawing = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with drawing, float32_products(device, spec.precision):
        while goes_on and step < n_steps and (running := [member for member in members if member.status == "running"]):
            if pack is None or len(pack.models) > len(running):
                pack = Pack([member.model for member in running])
            reseed(device, seed * 1_000_003 + step)
            set_rates(optimizer, spec.schedule, step, n_steps)
            losses.append(gradients(pack, running, step))
            if spec.grad_clip is not None:
                for member in running:  # parameters without a gradient do not count
                    clip_gradients(member.model.parameters(), spec.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            goes_on = on_step is None or on_step(step)
            is_evaluated = step % eval_every == 0 or step == n_steps
            if is_evaluated:
                settled_at = _settle(running, losses, settled_at)
                _evaluate(running, evaluate, pack, spec, step=step, n_steps=n_steps, on_evaluation=on_evaluation)
            if checkpoint_every is None:
                is_due = is_evaluated and _is_late(saved_at, ranks, device)
            else:
                is_due = step % checkpoint_every == 0
            if checkpoint is not None and (is_due or not goes_on):
                settled_at = _settle(running, losses, settled_at)
                save_members(checkpoint, members, optimizer, step, ranks=ranks)
                saved_at = time.monotonic()
    keep_moments(optimizer, members)


def batch_gradients(pack: Pack, running: Sequence[TrainState], step: int, spec: TrainSpec) -> Tensor:
    """Gradients of the mean cross entropy and of the losses that parts report; the cross entropy alone is what is returned.

    Members that have stopped get none, so the optimizer leaves them alone; nor do those whose batch asks nothing.
    """
    inputs, targets = stack_batches([member.batches for member in running], step)
    each = targets.expand(len(running), *targets.shape[-2:])
    silent = [member for member, own in zip(running, each, strict=True) if not asks_anything(member.batches, step, own)]
    for member in silent:
        member.unsupervised.append(step)
    if len(silent) == len(running):
        return torch.full((len(running),), math.nan, device=inputs.device)
    with autocast(inputs.device, spec.precision), collecting() as found:
        losses = token_losses(pack(inputs), targets)
    found.added_to(losses).sum().backward()
    for member in silent:  # what has come to them is 0 / 0
        member.model.zero_grad()
    return losses.detach()


def stack_batches(batches: Sequence[Batches], step: int) -> tuple[Tensor, Tensor]:
    """The step's batch: [batch, time] if all share their batches, else [members, batch, time]."""
    distinct = {id(single): single for single in batches}
    drawn = {key: single[step] for key, single in distinct.items()}
    if len(drawn) == 1:
        inputs, targets = next(iter(drawn.values()))
        return inputs, targets
    own = [drawn[id(single)] for single in batches]
    return torch.stack([inputs for inputs, _ in own]), torch.stack([targets for _, targets in own])


def _settle(running: Sequence[TrainState], losses: list[Tensor], since: float) -> float:
    """Book the losses of the latest steps, in one transfer, and the time they took; the time now."""
    columns = torch.stack(losses).double().T.tolist() if losses else [[]] * len(running)
    losses.clear()
    now = time.monotonic()
    for member, column in zip(running, columns, strict=True):
        member.losses += column
        member.seconds += (now - since) / len(running)
    return now


def _is_late(saved_at: float, ranks: Ranks, device: torch.device) -> bool:
    """Whether it is time for a checkpoint; all ranks have to agree, so they go by the main one's clock."""
    is_late = ranks.is_main and time.monotonic() - saved_at > CHECKPOINT_SECONDS
    return is_late if ranks.n_ranks == 1 else bool(ranks.total(torch.tensor(float(is_late), device=device)))


def _evaluate(
    running: Sequence[TrainState],
    evaluate: EvaluateModels,
    pack: Pack,
    spec: TrainSpec,
    *,
    step: int,
    n_steps: int,
    on_evaluation: OnEvaluation | None,
) -> None:
    """Evaluate the running members, and let each take in its row; its training loss is that since the row before."""
    for member in running:
        member.model.eval()
    with torch.no_grad(), autocast(resolve_device(spec.device), spec.scores_in):
        found = evaluate(pack, running)
    for index, member in enumerate(running):
        member.model.train()
        row = {"step": step, "lr": learning_rate(spec.schedule, member.lr, step - 1, n_steps), **member.latest_loss()}
        row |= {name: float(values[index]) for name, values in found.items()}
        member.record(row, spec, is_last=step == n_steps)
        if on_evaluation is not None:
            on_evaluation(member, row)
