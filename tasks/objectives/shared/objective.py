"""The contract of objectives: sequences of tokens in, inputs, targets and a loss mask out."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tasks.checks import check_integers
from tasks.task import Examples


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """A batch of samples: tokens [n, time] int64 and sample_ids [n] int64, which name a sample wherever it turns up.

    `attention_mask` [n, time] bool is False at pads (None: there are none). `targets` [n, time] int64 come with the data, for
    the objective `custom`; the others read none.
    """

    tokens: np.ndarray
    sample_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.tokens)
        if len(shape) != 2:
            raise ValueError(f"tokens must be [n, time]; got the shape {list(shape)}")
        _check_array("tokens", self.tokens, shape, "an integer")
        _check_array("sample_ids", self.sample_ids, shape[:1], "an integer")
        if self.attention_mask is not None:
            _check_array("attention_mask", self.attention_mask, shape, "a bool")
        if self.targets is not None:
            _check_array("targets", self.targets, shape, "an integer")

    @property
    def kept(self) -> np.ndarray:
        """Where there are tokens and no pads: [n, time] bool."""
        return np.ones(self.tokens.shape, dtype=bool) if self.attention_mask is None else self.attention_mask


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...], kind: Literal["an integer", "a bool"]) -> None:
    is_right = isinstance(array, np.ndarray) and array.dtype.kind in ("iu" if kind == "an integer" else "b")
    if not is_right or array.shape != shape:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be {kind} array of the shape {list(shape)}; got {got}")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which of a sample's corruptions: they share nothing between seeds, stages of growth, or variants.

    A variant is an epoch; or an epoch modulo the number of variants that a cache of activations holds.
    """

    seed: int
    stage: int = 0
    variant: int = 0

    @property
    def key(self) -> tuple[int, int, int]:
        """What a random stream is named by."""
        return self.seed, self.stage, self.variant


@dataclass(frozen=True, kw_only=True)
class ObjectiveTargets(Examples):
    """Examples, and how they came about.

    `loss_mask` [n, time] is True where a target is asked. `clm_mask` [time] is False at positions that no sequence could be asked
    at. `mask_ratio` [n] is the share of a sequence's tokens that is corrupted in expectation. `loss_weights` [n] are factors of
    the losses of a sequence's positions.
    """

    loss_mask: np.ndarray
    clm_mask: np.ndarray
    mask_ratio: np.ndarray
    loss_weights: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What is asked of sequences of tokens. A kind is one file `tasks/objectives/<kind>.py` with one frozen dataclass.

    Its fields are the options, all but `vocab_size` with defaults; `__post_init__` raises a ValueError that names the rule.
    `corrupts` says whether inputs depend on the draw and the time: where they do not, what a trunk makes of them holds for all
    stages. `on_causal_stacks` and `on_bidirectional_stacks` say how it fits stacks that do not look ahead, and those that do.
    """

    corrupts: ClassVar[bool] = False
    on_causal_stacks: ClassVar[Literal["fits", "doubtful"]] = "fits"
    on_bidirectional_stacks: ClassVar[Literal["fits", "refused"]] = "fits"

    vocab_size: int

    def __post_init__(self) -> None:
        check_integers(minimum=1, vocab_size=self.vocab_size)

    @abstractmethod
    def apply(self, batch: Sequences, draw: Draw, time: float | np.ndarray = 0.0) -> ObjectiveTargets:
        """What a model reads and is asked; a pure function of the draw, the time, and each sample by itself.

        Neither the order of a batch nor its other samples matter. `time` in [0, 1], one or [n], is how noisy it may be.
        """

    @property
    def input_vocab_size(self) -> int:
        """How many tokens an embedding must know."""
        return self.vocab_size

    def check_stacks(self, is_causal: Sequence[bool]) -> None:
        """Warn where it does not suit a rack, by whether each stack is causal; a ValueError where it makes no sense."""
        kind = type(self).__name__.lower()
        causal = [index for index, flag in enumerate(is_causal) if flag]
        bidirectional = [index for index, flag in enumerate(is_causal) if not flag]
        if bidirectional and self.on_bidirectional_stacks == "refused":
            text = "have mixers that look ahead and would copy what they are asked"
            raise ValueError(f"objective {kind} needs causal stacks, but the stacks {bidirectional} {text}; use mlm or custom")
        if causal and self.on_causal_stacks == "doubtful":
            text = f"objective {kind}: the stacks {causal} are causal and fill in masked tokens by what stands before them alone"
            warnings.warn(text, stacklevel=2)
