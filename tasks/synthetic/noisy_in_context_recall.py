"""Noisy in-context recall: in-context recall among tokens that mean nothing."""

from dataclasses import dataclass

from tasks.checks import check_integers, check_noise
from tasks.synthetic.shared.recall import Recall


@dataclass(frozen=True, kw_only=True)
class NoisyInContextRecall(Recall):
    """Recall where a slot shows two noise tokens with a chance of `frac_noise`. Poli et al. 2024, arXiv 2403.17844."""

    vocab_size: int = 32
    noise_vocab_size: int = 16
    frac_noise: float = 0.2

    def __post_init__(self) -> None:
        check_integers(minimum=0, noise_vocab_size=self.noise_vocab_size)
        check_noise(frac_noise=self.frac_noise, noise_vocab_size=self.noise_vocab_size)
        super().__post_init__()

    @property
    def _n_noise(self) -> int:
        return self.noise_vocab_size

    @property
    def _noise_chance(self) -> float:
        return self.frac_noise
