"""SweepSpec: how grid points of a MAD run are chosen (grid, Optuna, ASHA)."""

from typing import Literal

from pydantic import PositiveInt

from configs import Spec


class SweepSpec(Spec):
    """Which learning rates and weight decays are tried.

    `grid` takes every pair. `optuna` draws `n_samples` pairs for each setting and seed: the rate log-uniform between the lowest
    and the highest of `lrs`, the decay likewise (from 1e-4 up, where the lowest is 0). `asha` stops trials early that are behind
    the others of their setting after `grace_epochs`. Both are Ray Tune's work: `python -m launch mad`.
    """

    method: Literal["grid", "optuna"] = "grid"
    n_samples: PositiveInt = 12
    asha: bool = False
    grace_epochs: PositiveInt = 10
