"""The MAD job's trials under Ray Tune: scheduled, retried, logged for TensorBoard; the same rows as in one process."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune import Callback
from ray.tune.logger import TBXLoggerCallback
from ray.tune.search import Searcher

from configs import ConfigError
from launch.cluster import cluster
from launch.schedulers import AshaPerSetting
from launch.searchers import Config, ListSearch, StudySearch
from search.devices import use_one_thread
from search.mad.job import failed_rows, packs, remaining, trial_options
from search.mad.spec import MadSpec
from search.mad.trial import MakeModel, Trial, TrialSpec, run_trials
from search.progress import Progress, label
from search.results import Row, TrialLog, to_json

SETTING = ("architecture", "task", "change", "seed")
METRIC = {"metric": "accuracy", "mode": "max"}


def execute(spec: MadSpec, log: TrialLog, out: Path, progress: Progress, make_model: MakeModel | None = None) -> None:
    """Run what the log does not hold yet on Ray, and add each row as it arrives.

    Raises:
        ConfigError: if a worker asks for more than the cluster has.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    settings = {name_of(trial.labels()): trial for trial in _settings(spec)}
    with cluster() as resources:
        packed = spec.packing == "always" or (spec.packing == "auto" and _uses_gpu(spec, resources))
        searcher, n_configs = searcher_for(spec, log, out, settings, spec.pack_size if packed else 1)
        recorder = Recorder(log, progress, settings)
        trainable = tune.with_parameters(
            run_config,
            settings={
                name: (trial.architecture, trial.task, trial.change, trial.spec.to_dict()) for name, trial in settings.items()
            },
            options=trial_options(spec, out.resolve()),
            make_model=make_model,
        )
        worker = _worker(spec, resources)
        tuner = tune.Tuner(
            tune.with_resources(trainable, worker),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(spec),
                num_samples=n_configs,
                max_concurrent_trials=spec.workers.max_concurrent,
                reuse_actors=True,  # a process a trial would pay for its imports each time
            ),
            run_config=tune.RunConfig(
                name=f"session-{sum(1 for _ in out.glob('tune/session-*')) + 1}",
                storage_path=str((out / "tune").resolve()),
                failure_config=tune.FailureConfig(max_failures=spec.workers.max_failures),
                callbacks=[recorder, TBXLoggerCallback()],
                verbose=0,
            ),
        )
        tuner.fit()
    if recorder.n_ended < n_configs:
        raise KeyboardInterrupt  # Tune turns the first Ctrl-C into an early, orderly end


def _settings(spec: MadSpec) -> list[Trial]:
    return [trial.at(seed, trial.spec.lr, trial.spec.weight_decay) for trial in spec.settings() for seed in spec.seeds]


def name_of(labels: Config) -> str:
    """The name of a setting and seed: of its study, and of its trials' common specification."""
    return " ".join(f"{key}={labels[key]}" for key in SETTING)


def run_config(config: Config, settings: dict[str, Any], options: dict[str, Any], make_model: MakeModel | None) -> None:
    """A worker's part: the trial or pack of one configuration; its last report carries the finished rows."""
    use_one_thread()
    architecture, task, change, raw = settings[name_of(config)]
    setting = Trial(architecture, task, change, TrialSpec.model_validate(raw))
    points = config.get("points") or [(config["seed"], config["lr"], config["weight_decay"])]
    latest: dict[str, dict[str, float]] = {}

    def report(trial: Trial, row: dict[str, float]) -> None:
        latest[trial.spec.fingerprint()] = row
        if all(other["step"] == row["step"] for other in latest.values()) or len(points) == 1:
            finite = {name: value for name, value in row.items() if math.isfinite(value)}
            tune.report({"accuracy": 0.0, **finite})  # a diverged model is as good as none

    rows = run_trials([setting.at(*point) for point in points], make_model=make_model, on_evaluation=report, **options)
    best = max(rows, key=lambda row: row["held_out_accuracy"] or 0.0)
    numbers = {name: value for name, value in best.items() if name.startswith("test_") and value is not None}
    tune.report({"accuracy": best["held_out_accuracy"] or 0.0, **numbers, "rows": to_json(rows)})


def searcher_for(spec: MadSpec, log: TrialLog, out: Path, settings: dict[str, Trial], size: int) -> tuple[Searcher, int]:
    """What Tune asks for the next configuration, and how many there are."""
    if spec.sweep.method == "grid":
        configs = [_config(pack) for pack in packs(remaining(spec, log), size)]
        return ListSearch(configs, **METRIC), len(configs)
    fixed = {name: {key: value for key, value in trial.labels().items() if key in SETTING} for name, trial in settings.items()}
    done = [name_of(row) for row in log.rows.values() if row["status"] != "failed"]
    n_left = {name: max(0, spec.sweep.n_samples - done.count(name)) for name in settings}
    backend = JournalFileBackend(str(out / "optuna.journal"))
    storage = optuna.storages.JournalStorage(backend)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return StudySearch(fixed, n_left, _space(spec), storage, **METRIC), sum(n_left.values())


def _config(pack: Sequence[Trial]) -> Config:
    labels = {key: value for key, value in pack[0].labels().items() if key != "key"}
    if len(pack) == 1:
        return labels
    points = [(trial.spec.seed, trial.spec.lr, trial.spec.weight_decay) for trial in pack]
    return {**{key: labels[key] for key in SETTING}, "n_packed": len(pack), "points": points}


def _space(spec: MadSpec) -> dict[str, optuna.distributions.BaseDistribution]:
    lowest_decay = max(min(spec.weight_decays), 1e-4)
    highest_decay = max(*spec.weight_decays, lowest_decay)
    return {
        "lr": optuna.distributions.FloatDistribution(min(spec.lrs), max(spec.lrs), log=True),
        "weight_decay": optuna.distributions.FloatDistribution(lowest_decay, highest_decay, log=True),
    }


def _scheduler(spec: MadSpec) -> AshaPerSetting | None:
    if not spec.sweep.asha:
        return None
    # A trial reports once an epoch and once more with its rows; ASHA would end it at max_t, so that lies beyond.
    return AshaPerSetting(SETTING, **METRIC, max_t=spec.epochs + 2, grace_period=min(spec.sweep.grace_epochs, spec.epochs))


def _uses_gpu(spec: MadSpec, resources: dict[str, float]) -> bool:
    return spec.train.device != "cpu" and resources.get("GPU", 0) > 0


def _worker(spec: MadSpec, resources: dict[str, float]) -> dict[str, float]:
    gpus = spec.workers.gpus
    if gpus is None:
        gpus = 1.0 if _uses_gpu(spec, resources) else 0.0
    for name, wanted, key in (("CPU", spec.workers.cpus, "cpus"), ("GPU", gpus, "gpus")):
        if wanted > resources.get(name, 0):
            raise ConfigError(
                f"workers.{key}: {wanted:g} a worker, but the cluster has {resources.get(name, 0):g} {name}(s) in all"
            )
    return {"cpu": spec.workers.cpus, "gpu": gpus}


class Recorder(Callback):
    """Puts what Tune hears from the trials into the log and onto the terminal."""

    def __init__(self, log: TrialLog, progress: Progress, settings: dict[str, Trial]) -> None:
        self.n_ended = 0
        self._log, self._progress, self._settings = log, progress, settings

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for `Tuner.restore`; a resumed run reads the trial log instead."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """An evaluation, or the end of a trial with its rows."""
        del iteration, trials, info
        config = trial.config
        if "rows" not in result:
            told = config if "lr" in config else {**config, "lr": math.nan, "weight_decay": math.nan}
            self._progress.moved(trial.trial_id, label(told), result, self._settings[name_of(config)].spec.n_steps)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that returned, with its rows, or one that ASHA stopped."""
        del iteration, trials, info
        last = trial.last_result or {}
        self._end(trial, json.loads(last["rows"]) if "rows" in last else [self._pruned(trial.config, last)])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that raised or died, for the last time."""
        del iteration, trials, info
        told = Path(trial.error_file) if trial.error_file else None
        error = told.read_text(encoding="utf-8") if told is not None and told.exists() else "the worker died without a word"
        self._end(trial, failed_rows(self._trials(trial.config), error))

    def _trials(self, config: Config) -> list[Trial]:
        points = config.get("points") or [(config["seed"], config["lr"], config["weight_decay"])]
        return [self._settings[name_of(config)].at(*point) for point in points]

    def _pruned(self, config: Config, last: dict[str, Any]) -> Row:
        (trial,) = self._trials(config)
        held_out = {f"held_out_{name}": last.get(name) for name in ("accuracy", "loss")}
        return {**trial.labels(), "status": "pruned", "error": None, **held_out, "steps": last.get("step"), "history": []}

    def _end(self, trial: Any, rows: list[Row]) -> None:
        self.n_ended += 1
        self._progress.ended(trial.trial_id)
        for row in rows:
            self._log.add(row)
            self._progress.finished(row)
