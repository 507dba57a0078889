"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) with a fixed or a learned feature map."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import merge_heads, split_heads
from models.ops.checks import at_least, split_evenly
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.ops.kernels import check_kernel, run_kernel
from models.ops.precision import in_float32
from models.ops.recurrences.linear_attention import linear_attention_flops
from models.rack.contracts import Mixer

EPSILON = 1e-12

LinearState = tuple[Tensor, Tensor, tuple[Tensor, ...]]


class ProductMap(nn.Module):
    """phi(x) = (W_1 x + b_1) * (W_2 x + b_2), the same for every head."""

    def __init__(self, d_head: int) -> None:
        super().__init__()
        self.first = nn.Linear(d_head, d_head)
        self.second = nn.Linear(d_head, d_head)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_head] -> same."""
        return self.first(x) * self.second(x)


class PositiveMap(nn.Module):
    """phi(x) = elu(x) + 1."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_head] -> same, positive."""
        return F.elu(x) + 1


class LinearAttention(Mixer):
    """y_t = phi(q_t) sum_{s<=t} phi(k_s) v_s^T / (phi(q_t) sum_{s<=t} phi(k_s)).

    `feature_map` "elu" is positive; "product" is learned (the MAD suite's), and takes both signs: its normaliser can come
    close to zero and change sign, where the output jumps by orders of magnitude. That is how the published numbers were made.
    `d_conv` is the width of a causal short convolution on query, key and value (0: none). `kernel`: auto, reference or fla.
    """

    has_step = True
    kernel_op = "linear_attention"

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        feature_map: Literal["elu", "product"] = "elu",
        d_conv: int = 0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.d_head = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        at_least(0, d_conv=d_conv)
        self.n_heads, self.kernel = n_heads, kernel
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.convolutions = ShortConvolutions((d_model, d_model, d_model), d_conv, kernel=kernel)
        is_learned = feature_map == "product"
        self.query_map = ProductMap(self.d_head) if is_learned else PositiveMap()
        self.key_map = ProductMap(self.d_head) if is_learned else PositiveMap()

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts = self.convolutions(self.query(x), self.key(x), self.value(x))
        query, key, value = (split_heads(part, self.n_heads) for part in parts)
        query, key = self.query_map(query), self.key_map(key)
        mixed = run_kernel(self.kernel_op, self.kernel, query, key, value) / _total(query, key)
        return self.output(merge_heads(mixed).to(x.dtype))

    def initial_state(self, batch_size: int) -> LinearState:
        """Sums of phi(k) v^T [batch, n_heads, d_head, d_head] and phi(k), and the convolutions' last inputs."""
        weight = self.key.weight
        products = weight.new_zeros(batch_size, self.n_heads, self.d_head, self.d_head, dtype=state_dtype(weight))
        return products, products[..., 0], self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: LinearState) -> tuple[Tensor, LinearState]:
        """Add one position to the sums and read them."""
        products, keys, memories = state
        parts, memories = self.convolutions.step(memories, self.query(x), self.key(x), self.value(x))
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)) for part in parts)
        mixed, products, keys = _step(products, keys, self.query_map(query), self.key_map(key), value)
        return self.output(mixed.flatten(-2).to(x.dtype)), (products, keys, memories)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The sums of products; the normaliser's sum of keys is not counted."""
        return self.n_heads * self.d_head**2

    def flops(self, seq_len: int) -> int:
        """Projections, feature maps, and the chunked products."""
        maps = [part for part in (self.query_map, self.key_map) if isinstance(part, ProductMap)]
        weights = multiply_adds(self.query, self.key, self.value, self.output)
        weights += self.n_heads * sum(multiply_adds(part.first, part.second) for part in maps)
        heads = self.n_heads * linear_attention_flops(seq_len, self.d_head, self.d_head)
        return 2 * seq_len * weights + heads + self.convolutions.flops(seq_len)


@in_float32
def _total(query: Tensor, key: Tensor) -> Tensor:
    """The normaliser: [batch, n_heads, time, d_head] twice -> [batch, n_heads, time, 1]."""
    return (query * key.cumsum(-2)).sum(-1, keepdim=True) + EPSILON


@in_float32
def _step(products: Tensor, keys: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What one position [batch, n_heads, d_head] reads from the sums with itself, and the sums."""
    keys, products = keys + key, products + key[..., None] * value[..., None, :]
    mixed = (query[..., None, :] @ products)[..., 0, :]
    return mixed / ((query * keys).sum(-1, keepdim=True) + EPSILON), products, keys
