"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, arXiv 2405.04434)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.adapters import merged_weight
from models.linears.dtypes import working_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.attend import attend, attend_flops
from models.ops.attention.heads import merge_heads, split_heads
from models.ops.attention.rotary import rotate
from models.ops.checks import at_least, split_evenly
from models.ops.kernels import check_kernel, run_kernel
from models.parts.norms.rmsnorm import RMSNorm
from models.rack.contracts import Mixer

LatentState = tuple[Tensor, Tensor]


class MLA(Mixer):
    """Attention whose keys and values are read from one small latent vector a position.

    c = norm(latent(x)) [kv_rank], k = [key_up(c), turned key_rope(x)], v = value_up(c), q = [query(x), turned query_rope(x)];
    scores are q k / sqrt(d_head + d_rope). Positions are in `d_rope` channels apart, whose key all heads share, so that only c
    and that key are cached: stepping, queries are taken to the latent space, and no key is ever formed. `query_rank` reads
    queries, too, from a latent vector norm(query_latent(x)) (None: from x). `d_head` None is d_model / n_heads, `d_rope` None an
    even number of half of that, `kv_rank` None a quarter of d_model. Without `causal` it looks both ways. `kernel`: auto,
    reference, flash-attn-4, flash-attn-3 or flash-attn.
    """

    takes_attention_mask = True
    kernel_op = "attend"

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        d_head: int | None = None,
        d_rope: int | None = None,
        kv_rank: int | None = None,
        query_rank: int | None = None,
        causal: bool = True,
        rope_base: float = 10000.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.d_head = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads) if d_head is None else d_head
        self.d_rope = max(2, self.d_head // 4 * 2) if d_rope is None else d_rope
        self.kv_rank = max(1, d_model // 4) if kv_rank is None else kv_rank
        n_inputs = d_model if query_rank is None else query_rank
        at_least(1, n_heads=n_heads, d_head=self.d_head, d_rope=self.d_rope, kv_rank=self.kv_rank, query_rank=n_inputs)
        if self.d_rope % 2 or rope_base <= 0:
            raise ValueError(f"d_rope = {self.d_rope} must be even, and rope_base = {rope_base} positive")
        self.n_heads, self.causal, self.rope_base, self.kernel = n_heads, causal, rope_base, kernel
        self.has_step = causal
        self.query_latent = None if query_rank is None else nn.Linear(d_model, query_rank, bias=False)
        self.query_norm = None if query_rank is None else RMSNorm(query_rank)
        self.query = nn.Linear(n_inputs, n_heads * self.d_head, bias=False)
        self.query_rope = nn.Linear(n_inputs, n_heads * self.d_rope, bias=False)
        self.latent = nn.Linear(d_model, self.kv_rank, bias=False)
        self.latent_norm = RMSNorm(self.kv_rank)
        self.key_rope = nn.Linear(d_model, self.d_rope, bias=False)
        self.key_up = nn.Linear(self.kv_rank, n_heads * self.d_head, bias=False)
        self.value_up = nn.Linear(self.kv_rank, n_heads * self.d_head, bias=False)
        self.output = nn.Linear(n_heads * self.d_head, d_model, bias=False)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        positions = torch.arange(x.shape[1], device=x.device)
        latent, turned_key = self._cached(x, positions)
        key, value = split_heads(self.key_up(latent), self.n_heads), split_heads(self.value_up(latent), self.n_heads)
        key = torch.cat((key, turned_key[:, None].expand(-1, self.n_heads, -1, -1)), dim=-1)
        query = torch.cat(self._query(x, positions), dim=-1)
        # The fused kernels want values of the size of keys.
        value = F.pad(value, (0, self.d_rope))
        mixed = run_kernel(
            self.kernel_op, self.kernel, query, key, value, causal=self.causal, window=None, attention_mask=attention_mask
        )
        return self.output(merge_heads(mixed[..., : self.d_head]))

    def initial_state(self, batch_size: int) -> LatentState:
        """What is cached, latents and turned keys [batch, 0, kv_rank + d_rope], and the position."""
        weight = self.latent.weight
        cache = weight.new_zeros(batch_size, 0, self.kv_rank + self.d_rope, dtype=working_dtype(weight))
        return cache, torch.zeros(1, dtype=torch.long, device=weight.device)

    def step(self, x: Tensor, state: LatentState) -> tuple[Tensor, LatentState]:
        """Attend from one position to the cached latents, as to one key-value head."""
        cache, position = state
        x = x[:, None]
        cache = torch.cat((cache, torch.cat(self._cached(x, position), dim=-1)), dim=1)
        query, turned_query = self._query(x, position)
        to_key, to_value = (merged_weight(linear).unflatten(0, (self.n_heads, -1)) for linear in (self.key_up, self.value_up))
        # A bias of `key_up` would add the same to every score of a head: the softmax does not see it.
        query = torch.cat((query @ to_key, turned_query), dim=-1)
        query = query * math.sqrt(query.shape[-1] / (self.d_head + self.d_rope))  # `attend` divides by the size that it sees
        seen = cache[:, None]
        mixed = attend(query.to(cache.dtype), seen, seen, causal=False, window=None)[..., : self.kv_rank]
        value = merge_heads(mixed @ to_value.mT)
        value = value if self.value_up.bias is None else value + self.value_up.bias
        return self.output(value)[:, 0], (cache, position + 1)

    def state_size(self, seq_len: int) -> int:
        """The latents and the turned keys."""
        return (self.kv_rank + self.d_rope) * seq_len

    def flops(self, seq_len: int) -> int:
        """Projections, and scores and values, these padded to the size of the keys."""
        linears = (self.query, self.query_rope, self.latent, self.key_rope, self.key_up, self.value_up, self.output)
        rank = () if self.query_latent is None else (self.query_latent,)
        attention = attend_flops(seq_len, self.n_heads, self.d_head + self.d_rope, causal=self.causal, window=None)
        return 2 * seq_len * multiply_adds(*linears, *rank) + attention

    def _cached(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, time, d_model] -> latents [batch, time, kv_rank] and turned keys [batch, time, d_rope]."""
        return self.latent_norm(self.latent(x)), rotate(self.key_rope(x), positions, self.rope_base)

    def _query(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, time, d_model] -> queries [batch, n_heads, time, d_head] and turned ones [batch, n_heads, time, d_rope]."""
        if self.query_latent is not None and self.query_norm is not None:
            x = self.query_norm(self.query_latent(x))
        query, turned = (split_heads(linear(x), self.n_heads) for linear in (self.query, self.query_rope))
        return query, rotate(turned, positions, self.rope_base)
