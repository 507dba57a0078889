"""Which trials Ray Tune starts and stops: ASHA within each setting, and workers that are left to start up."""

from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler


class AshaPerSetting(FIFOScheduler):
    """One ASHA scheduler (Li et al. 2020) for each setting: accuracies of different tasks and models are no rivals.

    Trials belong together if their configurations agree in `same`.
    """

    def __init__(self, same: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self._same = same
        self._options = options
        self._by_setting: dict[tuple[Any, ...], ASHAScheduler] = {}

    def _of(self, trial: Any) -> ASHAScheduler:
        setting = tuple(trial.config[name] for name in self._same)
        if setting not in self._by_setting:
            self._by_setting[setting] = ASHAScheduler(**self._options)
        return self._by_setting[setting]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass on."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on, as its setting's scheduler has it."""
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Pass on."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)


class PatientScheduler(FIFOScheduler):
    """Gives no free worker to a trial whose own worker is still starting.

    FIFO does, and throws the half-started one away: next to trials that are shorter than a start-up it would never come up.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular: Tune itself starts the new ones on what is free."""
