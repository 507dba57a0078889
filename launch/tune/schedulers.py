"""Which trials Ray Tune starts and stops: ASHA within each setting, and workers that are left to start up."""

from collections import defaultdict
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler

REDUCTION = 4
"""One in so many goes on at each rung, and the next rung is so many times as far."""


class AshaPerSetting(FIFOScheduler):
    """ASHA (Li et al. 2020) for each setting: accuracies of different tasks and models are no rivals.

    At `grace_period`, and at every power of REDUCTION times that, a trial is stopped that is not among the best quarter of those
    that have come so far. Trials are rivals if their configurations agree in `same`.

    A trial is judged by its value at that very time, or not at all: one that goes on from its checkpoint counts on, and Ray's own
    ASHAScheduler would compare what it has after all its training with what the others had at the rungs that it has not seen.
    """

    def __init__(self, same: tuple[str, ...], *, metric: str, time: str, whole: str, grace_period: int) -> None:
        """Say what is judged and when.

        Args:
            same: keys of a configuration.
            metric: the key of what is better if it is higher.
            time: the key of a trial's own count of what it has done.
            whole: a key of a trial's last report, which is not judged any more.
            grace_period: the first time at which trials are judged.
        """
        super().__init__()
        self._same, self._value, self._time, self._whole, self._grace_period = same, metric, time, whole, grace_period
        self._seen: defaultdict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        del tune_controller
        if self._whole in result or not self._is_rung(result[self._time]):
            return self.CONTINUE
        time, value = result[self._time], result[self._value]
        seen = self._seen[(*(trial.config[name] for name in self._same), time)]
        if trial.trial_id in seen:  # judged before it was tried again
            return self.CONTINUE
        least = np.percentile(list(seen.values()), 100 * (1 - 1 / REDUCTION)) if seen else -np.inf
        seen[trial.trial_id] = value
        return self.STOP if value < least else self.CONTINUE

    def _is_rung(self, time: int) -> bool:
        rung = self._grace_period
        while rung < time:
            rung *= REDUCTION
        return rung == time


class PatientScheduler(FIFOScheduler):
    """Gives no free worker to a trial whose own worker is still starting.

    FIFO does, and throws the half-started one away: next to trials that are shorter than a start-up it would never come up.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular: Tune itself starts the new ones on what is free."""
