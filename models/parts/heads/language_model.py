"""The read-out of language models: norm, then one linear to the vocabulary at every position."""

from collections.abc import Callable

from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.precision import in_float32
from models.rack.contracts import Head
from models.rack.padding import mean_over_tokens
from models.rack.reports import is_collecting, report


class LanguageModel(Head):
    """[batch, time, d_model] -> logits [batch, time, vocab_size].

    In training, `z_loss` is the weight of a loss that keeps the logits' normaliser near one (Chowdhery et al. 2022,
    arXiv 2204.02311, section 5; 1e-4 there): the mean over all positions but pads of log(sum_v exp(logit_v))^2. It is reported,
    to whoever collects.
    """

    has_step = True

    def __init__(
        self, d_model: int, vocab_size: int, make_norm: Callable[[], nn.Module], *, bias: bool = False, z_loss: float = 0.0
    ) -> None:
        super().__init__()
        if z_loss < 0:
            raise ValueError(f"z_loss = {z_loss} must be at least 0: a negative weight would have the logits grow without end")
        self.z_loss, self.takes_attention_mask = z_loss, z_loss > 0
        self.norm = make_norm()
        self.output = nn.Linear(d_model, vocab_size, bias=bias)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[batch, time, d_model] -> [batch, time, vocab_size]."""
        logits = self.output(self.norm(x.to(self.output.weight.dtype)))
        if self.z_loss and self.training and is_collecting():
            report("z_loss", squared_normaliser(logits, attention_mask), weight=self.z_loss)
        return logits

    def flops(self, seq_len: int) -> int:
        """Forward floating-point operations for one sequence."""
        return 2 * seq_len * multiply_adds(self.output)


@in_float32
def squared_normaliser(logits: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The mean of log(sum_v exp(logit_v))^2 over positions, pads left out: [..., vocab_size] -> scalar."""
    return mean_over_tokens(logits.logsumexp(-1, keepdim=True).square(), attention_mask).squeeze(-1)
