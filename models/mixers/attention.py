"""Softmax attention (Vaswani et al. 2017), with rotary positions, shared key heads, a window and short convolutions."""

import torch
from torch import Tensor, nn

from models.mixer import Mixer
from models.ops.attend import attend, is_blocked
from models.ops.checks import at_least, split_evenly
from models.ops.heads import merge_heads, split_heads
from models.ops.linears import multiply_adds
from models.ops.rotary import rotate
from models.ops.short_convolution import ShortConvolutions

AttentionState = tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]


class Attention(Mixer):
    """Multi-head attention.

    Options: `n_kv_heads` key-value heads are shared by groups of query heads (None: one each; 1: multi-query). `window` is
    the number of positions seen, the own one included (None: all); with `causal` false it reaches as far ahead as back.
    `rope_base` None is attention without positions. `d_conv` is the width of a causal short convolution on query, key and
    value (0: none).
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        n_kv_heads: int | None = None,
        window: int | None = None,
        causal: bool = True,
        rope_base: float | None = 10000.0,
        bias: bool = False,
        d_conv: int = 0,
    ) -> None:
        super().__init__()
        self.d_head = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        split_evenly("n_heads", n_heads, parts_name="n_kv_heads", parts=self.n_kv_heads)
        at_least(0, d_conv=d_conv)
        if window is not None:
            at_least(1, window=window)
        if rope_base is not None and (self.d_head % 2 or rope_base <= 0):
            raise ValueError(
                f"rope_base = {rope_base} must be positive and needs an even head size, but d_model / n_heads = {self.d_head}: "
                "choose another n_heads or rope_base = null"
            )
        if d_conv and not causal:
            raise ValueError(f"d_conv = {d_conv} looks backwards only: with causal = false it must be 0")
        self.n_heads, self.window, self.causal, self.rope_base = n_heads, window, causal, rope_base
        self.has_step = causal
        d_key = self.n_kv_heads * self.d_head
        self.query = nn.Linear(d_model, d_model, bias=bias)
        self.key = nn.Linear(d_model, d_key, bias=bias)
        self.value = nn.Linear(d_model, d_key, bias=bias)
        self.output = nn.Linear(d_model, d_model, bias=bias)
        self.convolutions = ShortConvolutions((d_model, d_key, d_key), d_conv)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts = self.convolutions(self.query(x), self.key(x), self.value(x))
        query, key, value = self._heads(parts, torch.arange(x.shape[1], device=x.device))
        return self.output(merge_heads(attend(query, key, value, causal=self.causal, window=self.window)))

    def initial_state(self, batch_size: int) -> AttentionState:
        """Keys and values [batch, n_kv_heads, 0, d_head], the position, and the convolutions' last inputs.

        The cache is of the precision that the projections compute in, under autocast its: float32 would double what is read.
        """
        weight = self.key.weight
        is_cast = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if is_cast else weight.dtype
        empty = weight.new_zeros(batch_size, self.n_kv_heads, 0, self.d_head, dtype=dtype)
        position = torch.zeros(1, dtype=torch.long, device=empty.device)
        return empty, empty, position, self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Attend from one position to the cached ones; what left the window is dropped from the cache."""
        keys, values, position, memories = state
        parts, memories = self.convolutions.step(memories, self.query(x), self.key(x), self.value(x))
        query, key, value = self._heads(tuple(part[:, None] for part in parts), position)
        keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        if self.window is not None:
            keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
        mixed = attend(query, keys, values, causal=False, window=None)
        return self.output(merge_heads(mixed)[:, 0]), (keys, values, position + 1, memories)

    def state_size(self, seq_len: int) -> int:
        """The key-value cache, cut to the window."""
        return 2 * self.n_kv_heads * self.d_head * min(seq_len, self.window or seq_len)

    def flops(self, seq_len: int) -> int:
        """Projections, and scores and values over every position that the chosen form multiplies, seen or masked."""
        projections = multiply_adds(self.query, self.key, self.value, self.output)
        reach = seq_len
        if self.window is not None and is_blocked(seq_len, causal=self.causal, window=self.window):
            reach = 2 * self.window
        attention = 2 * reach * self.n_heads * self.d_head
        return 2 * seq_len * (projections + attention) + self.convolutions.flops(seq_len)

    def _heads(self, parts: tuple[Tensor, ...], positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections [batch, time, channels] -> rotated query and key, and value, [batch, heads, time, d_head]."""
        n_heads = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        query, key, value = (split_heads(part, heads) for part, heads in zip(parts, n_heads, strict=True))
        if self.rope_base is not None:
            query, key = rotate(query, positions, self.rope_base), rotate(key, positions, self.rope_base)
        return query, key, value
