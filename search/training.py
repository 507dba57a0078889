"""The one training loop: one model, or several of one architecture in step, each with its own rate and decay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from search.devices import autocast, resolve_device
from search.member import Batches, Member, TrainSpec, restore_members, save_members
from search.metrics import token_losses
from search.packing import Pack
from search.schedules import learning_rate

CHECKPOINT_SECONDS = 20.0

Evaluate = Callable[[Pack, Sequence[Member]], dict[str, Tensor]]
OnEvaluation = Callable[[Member, dict[str, float]], None]


def train(
    members: Sequence[Member],
    spec: TrainSpec,
    *,
    n_steps: int,
    eval_every: int,
    evaluate: Evaluate,
    seed: int = 0,
    on_evaluation: OnEvaluation | None = None,
    checkpoint_path: Path | None = None,
) -> None:
    """Train the members in step until each has stopped; their fields hold what came out.

    Members that have stopped leave the pack, and their weights do not move any more. Nothing in a step waits for the device;
    every `eval_every` steps there is one evaluation, one transfer and, now and then, one checkpoint, from which the same
    call goes on exactly: batches, rates and dropout are functions of the seed and the step.

    Args:
        members: models of one architecture, on the spec's device, each with its own batches (or all with the same).
        spec: optimizer, schedule, stop rule, device.
        n_steps: the last step; schedules run over it.
        eval_every: steps between evaluations; there is one after the last step too.
        evaluate: metrics of a pack, each [members], for the members still running.
        seed: of dropout.
        on_evaluation: called for each running member with its newest history row.
        checkpoint_path: where to resume from, if it exists, and to write to.
    """
    device = resolve_device(spec.device)
    for member in members:
        member.model.train()
    groups = [{"params": list(m.model.parameters()), "lr": m.lr, "weight_decay": m.weight_decay} for m in members]
    optimizer = torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, fused=True)
    step = 0
    if checkpoint_path is not None and checkpoint_path.exists():
        step = restore_members(checkpoint_path, members, optimizer, device)
    saved_at = started = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while step < n_steps and (running := [member for member in members if member.status == "running"]):
            torch.manual_seed(seed * 1_000_003 + step)
            pack = Pack([member.model for member in running])
            first, step = step, min(step + eval_every, n_steps)
            losses = []
            for now in range(first, step):
                for member, group in zip(members, optimizer.param_groups, strict=True):
                    group["lr"] = learning_rate(spec.schedule, member.lr, now, n_steps)
                losses.append(_step(pack, running, optimizer, spec, now))
            rows = _rows(running, evaluate, pack, torch.stack(losses), spec)
            seconds, started = time.monotonic() - started, time.monotonic()
            for member, metrics in zip(running, rows, strict=True):
                member.seconds += seconds / len(running)
                row = {"step": step, "lr": learning_rate(spec.schedule, member.lr, step - 1, n_steps), **metrics}
                member.record(row, spec, is_last=step == n_steps)
                if on_evaluation is not None:
                    on_evaluation(member, row)
            if checkpoint_path is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save_members(checkpoint_path, members, optimizer, step)
                saved_at = time.monotonic()


def _step(pack: Pack, running: Sequence[Member], optimizer: torch.optim.Optimizer, spec: TrainSpec, step: int) -> Tensor:
    """One step of all running members; members that have stopped have no gradient, so the optimizer leaves them alone."""
    inputs, targets = stack_batches([member.batches for member in running], step)
    with autocast(inputs.device, spec.precision):
        losses = token_losses(pack(inputs), targets)
    losses.sum().backward()
    if spec.grad_clip is not None:
        for member in running:
            nn.utils.clip_grad_norm_(member.model.parameters(), spec.grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    return losses.detach()


def stack_batches(batches: Sequence[Batches], step: int) -> tuple[Tensor, Tensor]:
    """The step's batch: [batch, time] if all share their batches, else [members, batch, time]."""
    distinct = {id(single): single for single in batches}
    drawn = {key: single[step] for key, single in distinct.items()}
    if len(drawn) == 1:
        return next(iter(drawn.values()))
    inputs, targets = zip(*(drawn[id(single)] for single in batches), strict=True)
    return torch.stack(inputs), torch.stack(targets)


def _rows(running: Sequence[Member], evaluate: Evaluate, pack: Pack, losses: Tensor, spec: TrainSpec) -> list[dict[str, float]]:
    """The evaluation of each running member; `losses` [steps, members] are those of the steps before it."""
    for member in running:
        member.model.eval()
    with torch.no_grad(), autocast(losses.device, spec.precision):
        metrics = {"train_loss": losses.double().mean(0).cpu(), **evaluate(pack, running)}
    for member in running:
        member.model.train()
    return [{name: float(values[index]) for name, values in metrics.items()} for index in range(len(running))]
