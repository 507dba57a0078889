"""Attention whose softmax is a kernel with features: linear in time (Choromanski et al. 2020, arXiv 2009.14794)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import merge_heads, split_heads
from models.ops.attention.kernel_attention import kernel_attention, kernel_attention_flops, normalised
from models.ops.attention.kernel_features import draw_frequencies, kernel_features, least_sum, scaled_frequencies
from models.ops.attention.rotary import rotate, rotated_channels
from models.ops.checks import at_least, split_evenly
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.ops.precision import in_float32
from models.rack.contracts import Mixer

INITIAL_SCALE = 2.0
"""Of waves: a key like the query then weighs e^2 times a random one. The sharper, the more features an estimate takes."""

KernelState = tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]


class KernelAttention(Mixer):
    """y_t = sum_s phi(q_t) phi(k_s) v_s / sum_s phi(q_t) phi(k_s), over s <= t, or all s where not `causal`.

    `kernel_type` is what phi(q) phi(k) is or estimates: favor, exp(q k / sqrt(d_head)), the kernel of softmax attention, by
    positive features (FAVOR+); rff_gaussian and rff_laplacian, exp of minus half the squared and of minus the absolute distance
    of unit vectors, times a scale that every head learns, by waves (Rahimi and Recht 2007; Peng et al. 2021, arXiv 2103.02143),
    whose sum is taken as no less than it can be, nor than its error; elu, the product of elu + 1 (Katharopoulos et al. 2020,
    arXiv 2006.16236). `kernel_dim` is the number of features (None: d_head, made even), drawn from `seed` once, for all heads.
    `rope_base` None is attention without positions. `d_conv` is the width of a causal short convolution on query, key and value
    (0: none).
    """

    takes_attention_mask = True

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        kernel_type: Literal["favor", "rff_gaussian", "rff_laplacian", "elu"] = "favor",
        kernel_dim: int | None = None,
        causal: bool = True,
        rope_base: float | None = 10000.0,
        d_conv: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.d_head = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        even = self.d_head + self.d_head % 2
        self.kernel_dim = (self.d_head if kernel_type == "elu" else even) if kernel_dim is None else kernel_dim
        at_least(1, kernel_dim=self.kernel_dim)
        at_least(0, d_conv=d_conv, seed=seed)
        if kernel_type == "elu" and self.kernel_dim != self.d_head:
            raise ValueError(f"kernel_dim = {kernel_dim}: elu has as many features as a head has channels, {self.d_head}")
        if kernel_type.startswith("rff") and self.kernel_dim % 2:
            raise ValueError(f"kernel_dim = {kernel_dim} must be even: {kernel_type} takes a cosine and a sine of every wave")
        if rope_base is not None:
            rotated_channels(self.d_head, rope_base)
        if d_conv and not causal:
            raise ValueError(f"d_conv = {d_conv} looks backwards only: with causal = false it must be 0")
        self.n_heads, self.kernel_type, self.causal, self.rope_base = n_heads, kernel_type, causal, rope_base
        self.has_step = causal
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.convolutions = ShortConvolutions((d_model, d_model, d_model), d_conv)
        self.frequencies: Tensor | None
        self.register_buffer("frequencies", draw_frequencies(kernel_type, self.kernel_dim, self.d_head, seed=seed))
        self.log_scale = nn.Parameter(torch.full((n_heads,), math.log(INITIAL_SCALE))) if kernel_type.startswith("rff") else None
        if self.log_scale is not None:
            self.log_scale.keep_init = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts = self.convolutions(self.query(x), self.key(x), self.value(x), attention_mask=attention_mask)
        positions = torch.arange(x.shape[1], device=x.device)
        query, key, peak, value = self._heads(parts, positions)
        count = positions[:, None] + 1 if attention_mask is None else attention_mask[:, None, :, None].cumsum(-2)
        least = self._least(count if self.causal else count[..., -1:, :])
        mixed = kernel_attention(query, key, peak, value, causal=self.causal, least=least, attention_mask=attention_mask)
        return self.output(merge_heads(mixed).to(x.dtype))

    def initial_state(self, batch_size: int) -> KernelState:
        """Sums of phi(k) [v, 1] [batch, n_heads, kernel_dim, d_head + 1], their peak, position, the convolutions' last inputs."""
        weight = self.key.weight
        sums = weight.new_zeros(batch_size, self.n_heads, self.kernel_dim, self.d_head + 1, dtype=state_dtype(weight))
        position = torch.zeros(1, dtype=torch.long, device=weight.device)
        return sums, torch.full_like(sums[..., :1, :1], -torch.inf), position, self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: KernelState) -> tuple[Tensor, KernelState]:
        """Add one position to the sums and read them."""
        sums, highest, position, memories = state
        parts, memories = self.convolutions.step(memories, self.query(x), self.key(x), self.value(x))
        query, key, peak, value = self._heads(tuple(part[:, None] for part in parts), position)
        read, sums, highest = _step(sums, highest, query, key, peak, value)
        mixed = normalised(read, self._least(position[:, None] + 1))
        return self.output(merge_heads(mixed)[:, 0].to(x.dtype)), (sums, highest, position + 1, memories)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The sums of products; the normaliser's sum of features is not counted."""
        return self.n_heads * self.kernel_dim * self.d_head

    def flops(self, seq_len: int) -> int:
        """Projections, short convolutions, features of queries and keys, and the products of features and values."""
        frequencies = 0 if self.frequencies is None else 2 * self.n_heads * self.frequencies.numel()
        weights = multiply_adds(self.query, self.key, self.value, self.output) + frequencies
        attention = kernel_attention_flops(seq_len, self.kernel_dim, self.d_head, n_heads=self.n_heads, causal=self.causal)
        return 2 * seq_len * weights + self.convolutions.flops(seq_len) + attention

    def _heads(self, parts: tuple[Tensor, ...], positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Projections [batch, time, d_model] -> features of query and key, the key's peak, value: [batch, n_heads, time, ...]."""
        query, key, value = (split_heads(part, self.n_heads) for part in parts)
        if self.rope_base is not None:
            query, key = (rotate(part, positions, self.rope_base) for part in (query, key))
        frequencies = self.frequencies
        if frequencies is not None and self.log_scale is not None:
            frequencies = scaled_frequencies(frequencies, self.log_scale, self.kernel_type)
        (query, _), (key, peak) = (kernel_features(part, frequencies, self.kernel_type) for part in (query, key))
        return query, key, peak, value

    def _least(self, count: Tensor) -> Tensor:
        """What the kernels of `count` keys [..., time, 1] add up to at least; one of none, by which a sum of zero is divided."""
        return least_sum(count, self.log_scale, self.kernel_dim).masked_fill(count == 0, 1.0)


@in_float32
def _step(sums: Tensor, highest: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What one position (query, key, the key's peak, value) reads from the sums with itself, the sums, and their peak."""
    query, key, peak, value = parts
    before, highest = highest, highest.maximum(peak)
    added = (key * (peak - highest).exp()).mT @ F.pad(value, (0, 1), value=1.0)
    sums = (before - highest).exp() * sums + added
    return query @ sums, sums, highest
