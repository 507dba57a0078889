"""The contracts of mixers, channel mixers and heads."""

from typing import Any, ClassVar

from torch import Tensor, nn

from models.rack.measured import Sized, measured_flops, measured_state


class Mixer(Sized):
    """A map over the sequence: every position may look at (earlier) positions.

    A kind is one file `models/mixers/<kind>.py` with one class. Its constructor takes `d_model` first (and `max_length`,
    if the parameters depend on it: both are handed down by the rack), then keyword options with defaults; the options'
    annotations (int, float, bool, str, None, Literal) are the schema that configurations are checked against. Sizes that
    cannot be are a ValueError naming the option, raised before anything is allocated. Options that were left `None` to be
    derived are kept resolved in an attribute of the same name. The module also builds on torch's meta device.

    Shapes: `forward(x [batch, time, d_model]) -> [batch, time, d_model]`, causal unless the option says otherwise, for any
    `time >= 1`, with no loop over single positions and no dependence on data-dependent shapes (so that `torch.func.vmap`
    over stacked parameters works). Recurrences are computed in float32 also under autocast.

    Linears are modules, named by what they make (query, key, value, output, gate, ...), and have a bias only where a formula has
    one: what a spec says of single linears is applied from outside. `fused` names, by linear, the parts of a matrix that cannot
    be set apart.

    Pads come after all tokens of a row (blocks see to that), where causal mixers do not see them. Mixers that may look ahead set
    `takes_attention_mask = True` and take `forward(x, attention_mask)`, a bool mask [batch, time], false at the pads, anywhere:
    no position looks at a pad but the pad at itself, and what comes out at pads is finite and has no other meaning. What has an
    attribute `causal` is given a mask only where that is false.

    Mixers with a step form set `has_step = True` and define `initial_state` and `step`; stepping through a sequence gives
    what `forward` gives, to 1e-5 in float32.
    """

    has_step = False
    takes_attention_mask: bool = False
    fused: ClassVar[dict[str, tuple[str, ...]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> [batch, time, d_model]."""
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> Any:
        """The state before the first position (a tensor or a tuple of them), on the device of the parameters.

        A cache, which grows, is empty at first, and in the precision that the projections compute in. All else is in
        `state_dtype` (float32, at least) and of the size that it stays at: what it takes is counted here.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step form")

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix one position: ([batch, d_model], state) -> ([batch, d_model], next state)."""
        raise NotImplementedError(f"{type(self).__name__} has no step form")

    def state_size(self, seq_len: int) -> int:
        """Numbers kept per sequence to go on after `seq_len` positions, as the MAD protocol counts them.

        The recurrent state, or the key-value cache; the short convolutions' last few inputs are not counted
        (Poli et al. 2024, section 3). By default all that `step` keeps; without a step form, all inputs.
        """
        return measured_state(self, seq_len)

    def set_memory_length(self, n_positions: int) -> tuple[str, ...]:  # noqa: ARG002
        """Start anew with a memory that fades to 1/e over about `n_positions`; the names of the parameters that were set.

        There are none where nothing fades.
        """
        return ()

    def flops(self, seq_len: int) -> int:
        """Forward floating-point operations for one sequence of `seq_len` positions; a multiply-add is two.

        Counts the matrix products, convolutions and scans of the form that `forward` runs, not element-wise work. By default
        what torch counts of them, without scans.
        """
        return measured_flops(self, seq_len)


class ChannelMixer(Sized):
    """A map over the channels of each position; a kind is one file in `models/channel_mixers/`.

    The rules for constructors are those of `Mixer`; `forward(x [..., d_model]) -> [..., d_model]`. One that also looks at the
    position before (RWKV's) takes [batch, time, d_model], sets `has_step = True` and has `initial_state` and `step` as mixers do.
    One that tells of all positions together (a loss, a metric) sets `takes_attention_mask = True` and takes `forward(x,
    attention_mask)`, to leave out pads.
    """

    has_step = False
    takes_attention_mask: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels: [..., d_model] -> [..., d_model]."""
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> Any:
        """The state before the first position."""
        raise NotImplementedError(f"{type(self).__name__} keeps no state")

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix one position: ([batch, d_model], state) -> ([batch, d_model], next state)."""
        raise NotImplementedError(f"{type(self).__name__} keeps no state")

    def flops(self, seq_len: int) -> int:
        """Forward floating-point operations for `seq_len` positions; a multiply-add is two. By default what torch counts."""
        return measured_flops(self, seq_len)


class Head(Sized):
    """The read-out of a rack; a kind is one file in `models/parts/heads/`.

    Its constructor names what it needs of `d_model`, `vocab_size`, `max_length` and `make_norm` (each call makes one more of
    the rack's norms), then keyword options. The linear to the vocabulary is `output`, so that it can be tied to the embedding.
    One that reads every position by itself sets `has_step = True`; one for which pads must be left out takes `forward(x,
    attention_mask)`, a bool mask [batch, time], false at pads, which stand anywhere, and sets `takes_attention_mask = True`.
    """

    has_step = False
    takes_attention_mask: bool = False
    output: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d_model] -> logits [batch, positions, vocab_size]."""
        raise NotImplementedError

    def flops(self, seq_len: int) -> int:
        """Forward floating-point operations for one sequence; a multiply-add is two. By default what torch counts."""
        return measured_flops(self, seq_len)
