"""Softmax attention (Vaswani et al. 2017), with rotary positions, shared key heads, a window, sinks and short convolutions."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.linears.dtypes import working_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.attend import attend, attend_flops
from models.ops.attention.heads import merge_heads, split_heads
from models.ops.attention.rope_scaling import RopeScaling, check_rope_scaling
from models.ops.attention.rotary import rotate, rotated_channels
from models.ops.checks import at_least, split_evenly
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.ops.kernels import check_kernel, run_kernel
from models.parts.norms.rmsnorm import RMSNorm
from models.rack.contracts import Mixer

AttentionState = tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]


class Attention(Mixer):
    """Multi-head attention.

    Options: `d_head` is the size of a head (None: d_model / n_heads). `n_kv_heads` key-value heads are shared by groups of
    query heads (None: one each; 1: multi-query). `window` is the number of positions seen, the own one included (None: all);
    with `causal` false it reaches as far ahead as back. The first `n_sink_tokens` stay visible beside a window (Xiao et al.
    2023, arXiv 2309.17453). `rope_base` None is attention without positions; `rope_fraction` is the share of a head's channels
    that turn, `rope_scaling` how they are slowed down for longer sequences (`models/ops/attention/rope_scaling.py`). `d_conv`
    is the width of a causal short convolution on query, key and value (0: none). `qk_norm` normalises query and key per head,
    before they turn (Henry et al. 2020, arXiv 2010.04245, as RMSNorm, with `norm_eps`). `sinks` adds a learned logit per head
    to the softmax's denominator: a head may look at nothing (gpt-oss model card, arXiv 2508.10925, section 2.1). `output_gate`
    multiplies what the heads return by sigmoid(gate(x)) (Qiu et al. 2025, arXiv 2505.06708).
    `kernel`: auto, reference, flash-attn-4, flash-attn-3, flash-attn or flex.
    """

    takes_attention_mask = True
    kernel_op = "attend"

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        window: int | None = None,
        n_sink_tokens: int = 0,
        causal: bool = True,
        rope_base: float | None = 10000.0,
        rope_fraction: float = 1.0,
        rope_scaling: RopeScaling | None = None,
        d_conv: int = 0,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        sinks: bool = False,
        output_gate: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        if (sinks or n_sink_tokens) and kernel not in ("auto", "reference"):
            without = "sinks = false" if sinks else "n_sink_tokens = 0"
            raise ValueError(f"kernel = {kernel} has no sinks: choose {without}, or kernel = auto or reference")
        self.d_head = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads) if d_head is None else d_head
        at_least(1, n_heads=n_heads, d_head=self.d_head, window=1 if window is None else window)
        at_least(0, d_conv=d_conv, n_sink_tokens=n_sink_tokens)
        if n_sink_tokens and (window is None or not causal):
            raise ValueError(f"n_sink_tokens = {n_sink_tokens} stay visible beside a window: give one, and causal = true")
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        split_evenly("n_heads", n_heads, parts_name="n_kv_heads", parts=self.n_kv_heads)
        self.d_rope = 0 if rope_base is None else rotated_channels(self.d_head, rope_base, rope_fraction)
        if rope_scaling is not None:
            check_rope_scaling(rope_scaling)
            if rope_base is None:
                raise ValueError("rope_scaling needs a rope_base: without one nothing turns")
        if d_conv and not causal:
            raise ValueError(f"d_conv = {d_conv} looks backwards only: with causal = false it must be 0")
        self.n_heads, self.window, self.causal, self.rope_base, self.kernel = n_heads, window, causal, rope_base, kernel
        self.n_sink_tokens, self.rope_scaling = n_sink_tokens, rope_scaling
        self.has_step = causal
        queries, keys = n_heads * self.d_head, self.n_kv_heads * self.d_head
        self.query = nn.Linear(d_model, queries, bias=False)
        self.key = nn.Linear(d_model, keys, bias=False)
        self.value = nn.Linear(d_model, keys, bias=False)
        self.gate = nn.Linear(d_model, queries, bias=False) if output_gate else None
        self.output = nn.Linear(queries, d_model, bias=False)
        self.convolutions = ShortConvolutions((queries, keys, keys), d_conv, kernel=kernel)
        self.query_norm = RMSNorm(self.d_head, eps=norm_eps) if qk_norm else None
        self.key_norm = RMSNorm(self.d_head, eps=norm_eps) if qk_norm else None
        self.sinks = nn.Parameter(torch.zeros(n_heads)) if sinks else None

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts = self.convolutions(self.query(x), self.key(x), self.value(x), attention_mask=attention_mask)
        query, key, value = self._heads(parts, torch.arange(x.shape[1], device=x.device))
        return self._read_out(
            self._attend(query, key, value, causal=self.causal, window=self.window, attention_mask=attention_mask), x
        )

    def initial_state(self, batch_size: int) -> AttentionState:
        """Keys and values [batch, n_kv_heads, 0, d_head], the position, and the convolutions' last inputs.

        The cache is of the precision that the projections compute in, under autocast its: float32 would double what is read.
        """
        weight = self.key.weight
        empty = weight.new_zeros(batch_size, self.n_kv_heads, 0, self.d_head, dtype=working_dtype(weight))
        position = torch.zeros(1, dtype=torch.long, device=empty.device)
        return empty, empty, position, self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Attend from one position to the cached ones; what left the window is dropped from the cache."""
        keys, values, position, memories = state
        parts, memories = self.convolutions.step(memories, self.query(x), self.key(x), self.value(x))
        query, key, value = self._heads(tuple(part[:, None] for part in parts), position)
        keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        if self.window is not None and keys.shape[2] > self.n_sink_tokens + self.window:
            keys, values = (self._within_window(part) for part in (keys, values))
        mixed = self._attend(query, keys, values, causal=False, window=None)
        return self._read_out(mixed[:, 0], x), (keys, values, position + 1, memories)

    def _within_window(self, cache: Tensor) -> Tensor:
        """What is seen of keys or values [batch, n_kv_heads, time, d_head]: the first tokens, and the last of the window."""
        assert self.window is not None  # or all is seen
        recent = cache[:, :, -self.window :]
        return torch.cat((cache[:, :, : self.n_sink_tokens], recent), dim=2) if self.n_sink_tokens else recent

    def state_size(self, seq_len: int) -> int:
        """The key-value cache, cut to the window and the first tokens."""
        n_seen = seq_len if self.window is None else min(seq_len, self.window + self.n_sink_tokens)
        return 2 * self.n_kv_heads * self.d_head * n_seen

    def flops(self, seq_len: int) -> int:
        """Projections, short convolutions, and scores and values."""
        gate = [] if self.gate is None else [self.gate]
        projections = 2 * seq_len * multiply_adds(self.query, self.key, self.value, self.output, *gate)
        attention = attend_flops(
            seq_len,
            self.n_heads,
            self.d_head,
            causal=self.causal,
            window=self.window,
            has_sinks=self.sinks is not None,
            n_sink_tokens=self.n_sink_tokens,
        )
        return projections + self.convolutions.flops(seq_len) + attention

    def first_token_logits(self, x: Tensor, *, beyond: int) -> Tensor:
        """The mean score that each head gives the first token, from positions at least `beyond` away: [n_heads].

        x is [batch, time, d_model]; without such positions, of all.
        """
        parts = self.convolutions(self.query(x), self.key(x), self.value(x))
        query, key, _ = self._heads(parts, torch.arange(x.shape[1], device=x.device))
        group = self.n_heads // self.n_kv_heads
        far = query[:, :, beyond:] if beyond < x.shape[1] else query
        scores = far @ key[:, :, :1].repeat_interleave(group, dim=1).mT / math.sqrt(self.d_head)
        return scores.mean(dim=(0, 2, 3))

    def _heads(self, parts: tuple[Tensor, ...], positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections [batch, time, channels] -> normalised, rotated query and key, and value, [batch, heads, time, d_head]."""
        n_heads = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        query, key, value = (split_heads(part, heads) for part, heads in zip(parts, n_heads, strict=True))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rope_base is not None:
            query, key = (
                rotate(part, positions, self.rope_base, d_rope=self.d_rope, scaling=self.rope_scaling) for part in (query, key)
            )
        return query, key, value

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """[batch, heads, time, d_head] each -> [batch, time, n_heads * d_head]."""
        shown: dict[str, Any] = {"causal": causal, "window": window, "attention_mask": attention_mask}
        if self.sinks is None and not self.n_sink_tokens:
            return merge_heads(run_kernel(self.kernel_op, self.kernel, query, key, value, **shown))
        n_sink_tokens = 0 if window is None else self.n_sink_tokens
        return merge_heads(attend(query, key, value, **shown, sinks=self.sinks, n_sink_tokens=n_sink_tokens))

    def _read_out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """What the heads return [..., n_heads * d_head] and the layer's input -> [..., d_model]."""
        return self.output(mixed if self.gate is None else mixed * self.gate(x).sigmoid())
