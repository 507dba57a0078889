"""Training of ours beside what one would write by hand, as pairs for `bench_speed`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from models import Rack, RackSpec
from search.training.batches import EpochBatches
from search.training.devices import autocast, computes_in, resolve_device
from search.training.loop import train
from search.training.optimizer import clip_gradients
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tasks import TASKS, draw

LAYERS = ["mh-attention", "swiglu", "mh-attention", "swiglu"]
GRID = [(lr, weight_decay) for lr in (1e-4, 5e-4, 1e-3) for weight_decay in (0.0, 0.1)]
BATCH_SIZE = 128

Pair = tuple[Callable[[], object], Callable[[], object]]
"""What we do, and what the peer does, once."""

Pairs = dict[str, tuple[Callable[[], Pair], float | None]]
"""What makes each pair, by name, and the ratio that is wanted at most."""


def smollm2(n_layers: int, *, choices: dict[str, object] | None = None, vocab_size: int = 49_152) -> RackSpec:
    """Blocks of the shapes of SmolLM2-135M; with `choices`, what may stand beside the attention by name."""
    attention = {"kind": "attention", "n_heads": 9, "n_kv_heads": 3}
    mixer = attention
    if choices:
        mixer = {"kind": "stochastic", "main": "attention", "mixers": {"attention": attention, **choices}}
    block = {"mixer": mixer, "mlp": {"kind": "swiglu", "d_ff": 1536}}
    stacks = [{"n_blocks": n_layers, "block": block}]
    return RackSpec.model_validate({"vocab_size": vocab_size, "d_model": 576, "tie_embeddings": True, "stacks": stacks})


def no_metrics(pack: object, members: list[TrainState]) -> dict[str, torch.Tensor]:
    """Stands for the evaluation, which both sides leave out."""
    del pack
    return {name: torch.zeros(len(members)) for name in ("accuracy", "loss")}


def bare_loop(model: nn.Module, batches: EpochBatches, device: torch.device, n_steps: int) -> None:
    """The same training as one would write it by hand."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1, fused=True)
    for step in range(n_steps):
        inputs, targets = batches[step]
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in(device, "auto") == "bf16"):
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def small_racks(n: int) -> tuple[list[Rack], EpochBatches, torch.device]:
    """Racks of four layers, and in-context recall for them."""
    device, task = resolve_device("auto"), TASKS["in_context_recall"]()
    examples = draw(task, 4 * BATCH_SIZE, seed=0, split="train")
    batches = EpochBatches(examples, BATCH_SIZE, seed=0, device=device)
    spec = RackSpec(d_model=128, layers=LAYERS, vocab_size=task.vocab_size, max_length=task.seq_len)
    return [spec.build(seed).to(device) for seed in range(n)], batches, device


def our_loop(models: list[Rack], batches: EpochBatches, n_steps: int) -> None:
    """As a job trains them."""
    members = [TrainState(model, batches, lr, decay) for model, (lr, decay) in zip(models, GRID, strict=False)]
    train(members, TrainSpec(), n_steps=n_steps, eval_every=n_steps, evaluate=no_metrics)


def loop_beside_bare_loop() -> Pair:
    """The training loop with one model."""
    models, batches, device = small_racks(1)
    return partial(our_loop, models, batches, 3), partial(bare_loop, models[0], batches, device, 3)


def packed_beside_one_by_one() -> Pair:
    """A grid of six models in one pack."""
    models, batches, _ = small_racks(len(GRID))

    def separately() -> None:
        for model in models:
            our_loop([model], batches, 1)

    return partial(our_loop, models, batches, 1), separately


def clipping() -> Pair:
    """Clipping gradients that are short enough, beside a step of AdamW with the same parameters."""
    model = smollm2(6, vocab_size=64).build().to(resolve_device("auto"))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    return lambda: clip_gradients(model.parameters(), 1e9), optimizer.step


def step_in_bf16() -> Pair:
    """A training step of six layers of SmolLM2 on 8 x 256 tokens, beside the same in float32."""
    device = resolve_device("auto")
    model, tokens = smollm2(6, vocab_size=4096).build().to(device), torch.randint(4096, (8, 256), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(precision: str) -> None:
        with autocast(device, precision):
            loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return partial(step, "bf16"), partial(step, "fp32")


def pairs() -> Pairs:
    """What makes each pair, by name, and the ratio that is wanted at most."""
    return {
        "training loop / bare loop, 4 small layers": (loop_beside_bare_loop, 1.05),
        "grid of 6 packed / one after the other": (packed_beside_one_by_one, None),
        "clipping / a fused step of AdamW, 6 layers of SmolLM2": (clipping, 0.3),
        "training step in bf16 / in float32, 6 layers of SmolLM2, 8 x 256": (step_in_bf16, 1 / 1.8),
    }
