"""The objective `mlm`, masked language modelling: predict the tokens that were masked."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from tasks.checks import check_integers
from tasks.objectives.shared.checks import check_choice, check_share
from tasks.objectives.shared.counters import uniform
from tasks.objectives.shared.masking import LossWeighting, MaskSchedule, ScheduleName, loss_weights
from tasks.objectives.shared.objective import Draw, Objective, ObjectiveTargets, Sequences
from tasks.task import IGNORED

FINAL_MASK_RATIO = 0.9


@dataclass(frozen=True, kw_only=True)
class Mlm(Objective):
    """Each token, but no pad, is chosen with a chance that hangs on the time; the chosen are corrupted and asked.

    Choices are independent, so a short sequence may have none. At a later time of the same draw more are chosen, and the same
    ones too.

    Options:
        mask_token_id: what stands at masked positions; null is `vocab_size`, a token that no text has.
        random_fraction: of the chosen, so many get a random token instead, ...
        keep_fraction: ... and so many stay as they are (0.1 and 0.1 in BERT, Devlin et al. 2019, arXiv 1810.04805).
        schedule: how the chance goes with time, `constant`, `linear`, `exponential` or `cosine`.
        mask_ratio: the chance at time 0, and at all times of the constant schedule.
        final_mask_ratio: the chance at time 1; null is 0.9.
        loss_weighting: `none`, or `elbo`: 1 / ratio, the bound of masked diffusion.
    """

    corrupts: ClassVar[bool] = True
    on_causal_stacks: ClassVar[Literal["fits", "doubtful"]] = "doubtful"

    mask_token_id: int | None = None
    random_fraction: float = 0.0
    keep_fraction: float = 0.0
    schedule: ScheduleName = "constant"
    mask_ratio: float = 0.15
    final_mask_ratio: float | None = None
    loss_weighting: LossWeighting = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_token_id is not None:
            check_integers(minimum=0, mask_token_id=self.mask_token_id)
            if self.mask_token_id > self.vocab_size:
                raise ValueError(f"mask_token_id must be at most vocab_size = {self.vocab_size}; got {self.mask_token_id}")
        check_share(random_fraction=self.random_fraction, keep_fraction=self.keep_fraction)
        if self.random_fraction + self.keep_fraction > 1:
            text = f"got {self.random_fraction} + {self.keep_fraction}"
            raise ValueError(f"random_fraction + keep_fraction must be at most 1; {text}")
        if self.random_fraction and self.mask_id == 0 and self.vocab_size == 1:
            raise ValueError("random_fraction needs a token beside the mask; got vocab_size = 1, mask_token_id = 0")
        check_choice("loss_weighting", self.loss_weighting, get_args(LossWeighting))
        if self.loss_weighting == "elbo" and self.random_fraction + self.keep_fraction:
            raise ValueError("loss_weighting elbo is of masks alone: random_fraction and keep_fraction must be 0")
        _ = self.masking

    @property
    def mask_id(self) -> int:
        """The token at masked positions."""
        return self.vocab_size if self.mask_token_id is None else self.mask_token_id

    @property
    def masking(self) -> MaskSchedule:
        """The chance by time."""
        is_fixed = self.schedule == "constant" or self.final_mask_ratio is not None
        return MaskSchedule(self.schedule, self.mask_ratio, self.final_mask_ratio if is_fixed else FINAL_MASK_RATIO)

    @property
    def input_vocab_size(self) -> int:
        """One more than the text has, if the mask is none of its tokens."""
        return max(self.vocab_size, self.mask_id + 1)

    def apply(self, batch: Sequences, draw: Draw, time: float | np.ndarray = 0.0) -> ObjectiveTargets:
        """As the contract says: the tokens that were chosen, at their places."""
        ratios = np.broadcast_to(self.masking.ratio(time), len(batch.tokens)).copy()
        tokens, n_positions = batch.tokens.astype(np.int64), batch.tokens.shape[1]
        chosen = (uniform(batch.sample_ids, n_positions, "chosen", *draw.key) < ratios[:, None]) & batch.kept
        return ObjectiveTargets(
            inputs=np.where(chosen, self._corrupted(tokens, batch.sample_ids, draw), tokens),
            targets=np.where(chosen, tokens, IGNORED),
            loss_mask=chosen,
            clm_mask=np.ones(n_positions, dtype=bool),
            mask_ratio=ratios,
            loss_weights=loss_weights(self.loss_weighting, ratios),
        )

    def _corrupted(self, tokens: np.ndarray, sample_ids: np.ndarray, draw: Draw) -> np.ndarray:
        """What would stand at each position if it were chosen."""
        masked = np.full_like(tokens, self.mask_id)
        if not self.random_fraction + self.keep_fraction:
            return masked
        fates = uniform(sample_ids, tokens.shape[1], "fate", *draw.key)
        is_text = self.mask_id < self.vocab_size  # the mask is no random token
        others = np.floor(uniform(sample_ids, tokens.shape[1], "token", *draw.key) * (self.vocab_size - is_text)).astype(np.int64)
        others += is_text & (others >= self.mask_id)
        is_random, is_kept = fates < self.random_fraction, fates >= 1 - self.keep_fraction
        return np.where(is_random, others, np.where(is_kept, tokens, masked))
