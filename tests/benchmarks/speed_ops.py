"""Operations of ours beside those of peers that do the same, as pairs for `bench_speed`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from models.channel_mixers.moe import MoE
from models.channel_mixers.swiglu import SwiGLU
from models.ops.attention.attend import attend
from search.training.mixture import Mixture
from search.training.mixture_spec import MixtureSpec
from tests.benchmarks.speed_training import Pair, Pairs

D_MODEL, N_EXPERTS, N_ACTIVE, D_EXPERT = 256, 8, 2, 256
N_TOKENS = 2048
WINDOW = 64


def trained(call: Callable[..., Tensor], *inputs: Tensor, backward: bool) -> Callable[[], object]:
    """A call of the inputs, and the gradients of its parameters and of these."""
    if not backward:
        return torch.no_grad()(lambda: call(*inputs))

    def step() -> None:
        leaves = [part.detach().requires_grad_() for part in inputs]
        y = call(*leaves)
        y.backward(torch.ones(()).expand_as(y).contiguous())

    return step


def experts(*, backward: bool) -> Pair:
    """8 x 256 tokens through a mixture of experts, beside the grouped product of transformers."""
    sizes = {"num_experts": N_EXPERTS, "num_experts_per_tok": N_ACTIVE, "moe_intermediate_size": D_EXPERT}
    config = Qwen3MoeConfig(hidden_size=D_MODEL, hidden_act="gelu", norm_topk_prob=True, **sizes)
    config._experts_implementation = "grouped_mm"
    theirs, x = Qwen3MoeSparseMoeBlock(config), torch.randn(8, N_TOKENS // 8, D_MODEL)
    for parameter in theirs.parameters():  # made empty
        nn.init.normal_(parameter, std=0.05)
    return trained(mixture_of_experts(), x, backward=backward), trained(theirs, x, backward=backward)


def experts_beside_dense(*, backward: bool) -> Pair:
    """The same mixture, beside a gated perceptron as wide as the experts that a token uses."""
    x = torch.randn(8, N_TOKENS // 8, D_MODEL)
    dense = SwiGLU(D_MODEL, d_ff=N_ACTIVE * D_EXPERT)
    return trained(mixture_of_experts(), x, backward=backward), trained(dense, x, backward=backward)


def mixture_of_experts() -> MoE:
    """Ours, whose router prefers no expert."""
    return MoE(D_MODEL, n_experts=N_EXPERTS, n_active=N_ACTIVE, d_expert=D_EXPERT)


def window(time: int, *, n_sink_tokens: int = 0, backward: bool) -> Pair:
    """Causal attention with a window, beside torch's with the window as a mask that is there already."""
    parts = [torch.randn(max(1, N_TOKENS // time), 4, time, 64) for _ in range(3)]
    place = torch.arange(time)
    distance = place[:, None] - place
    seen = (distance >= 0) & ((distance < WINDOW) | (place < n_sink_tokens))
    ours = partial(attend, causal=True, window=WINDOW, n_sink_tokens=n_sink_tokens)
    theirs = partial(F.scaled_dot_product_attention, attn_mask=seen)
    return trained(ours, *parts, backward=backward), trained(theirs, *parts, backward=backward)


def text_batches(folder: Path, *, n_rows: int = 32, seq_len: int = 256) -> Pair:
    """The next batch of the library's sources, beside windows anywhere in one array of tokens that is mapped into memory."""
    task = {"kind": "text", "seq_len": seq_len, "folder": str(folder)}
    mixture = Mixture(MixtureSpec(batch_size=n_rows, tasks={"text": {"task": task}}), seed=0, device=torch.device("cpu"))
    rows = mixture.tasks["text"].rows("train", 0, 0, mixture.tasks["text"].n_rows("train")).inputs
    rows.astype(np.uint16).tofile(folder / "tokens.bin")
    tokens, reach = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r"), np.arange(seq_len + 1)
    random, steps = np.random.default_rng(0), iter(range(2**31))

    def peer() -> tuple[Tensor, Tensor]:
        found = tokens[random.integers(len(tokens) - seq_len, size=n_rows)[:, None] + reach].astype(np.int64)
        return torch.from_numpy(found[:, :-1]), torch.from_numpy(found[:, 1:])

    return lambda: mixture[next(steps)], peer


def pairs(folder: Path) -> Pairs:
    """What makes each pair, by name, and the ratio that is wanted at most; data go into the folder."""
    found: Pairs = {"text batches, 32 x 256 / a gather from a mapped file": (partial(text_batches, folder), 4.0)}
    for backward in (False, True):
        mode = "training" if backward else "forward"
        found[f"8 experts, top 2 / transformers' grouped product, {mode}"] = partial(experts, backward=backward), 1.1
        found[f"8 experts, top 2 / dense MLP of the active size, {mode}"] = partial(experts_beside_dense, backward=backward), 1.6
        for length in (64, 128, 256, 512, 2048, 4096):
            found[f"window 64 in {length} / SDPA with a mask, {mode}"] = partial(window, length, backward=backward), 1.0
        with_sinks = partial(window, 256, n_sink_tokens=4, backward=backward)
        found[f"window 64 and 4 sink tokens in 256 / SDPA with a mask, {mode}"] = with_sinks, 1.0
    return found
