"""The MAD job's trials under Ray Tune: scheduled, retried, logged for TensorBoard; the same rows as in one process."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from ray import tune

from launch.cluster import cluster, may_use_gpus, worker_resources
from launch.mad.recorder import Recorder
from launch.mad.worker import EPOCH, ROWS, SETTING, name_of, run_config
from launch.tune.journal import open_journal
from launch.tune.schedulers import AshaPerSetting
from launch.tune.searchers import Config, ListSearch, StatelessSearcher
from launch.tune.sessions import fit, next_session
from launch.tune.studies import StudySearch
from launch.tune.tensorboard import TensorBoardLog
from search.jobs.mad.job import packs, remaining, trial_options
from search.jobs.mad.run_trials import MakeModel
from search.jobs.mad.spec import MadSpec
from search.jobs.mad.trial import Trial
from search.runs.console import Progress
from search.runs.isolation import IsolationSpec
from search.runs.run_folder import TrialLog


def execute(spec: MadSpec, log: TrialLog, out: Path, progress: Progress, make_model: MakeModel | None = None) -> None:
    """Run what the log does not hold yet on Ray, and add each row as it arrives.

    Raises:
        ConfigError: if a worker asks for more than the cluster has.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    settings = {name_of(trial.labels()): trial for trial in _settings(spec)}
    with cluster() as resources:
        if spec.sweep.method == "grid":
            searcher, n_configs = _grid_search(spec, log, _pack_size(spec, resources))
        else:
            searcher, n_configs = _study_search(spec, log, settings, _storage(out, progress))
        recorder = Recorder(log, progress, settings, out)
        trainable = tune.with_parameters(
            run_config,
            settings={
                name: (trial.architecture, trial.task, trial.change, trial.spec.to_dict()) for name, trial in settings.items()
            },
            options=trial_options(spec, out.resolve()),
            n_threads=spec.workers.n_threads,
            make_model=make_model,
            limits=IsolationSpec(isolate_trials=spec.isolate_trials, trial_timeout=spec.trial_timeout),
        )
        worker = worker_resources(spec.workers, spec.train.device, resources)
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
                name=next_session(out / "tune"),
                storage_path=str((out / "tune").resolve()),
                failure_config=tune.FailureConfig(max_failures=spec.workers.max_failures),
                callbacks=[recorder, TensorBoardLog(EPOCH)],
                verbose=0,
            ),
        )
        fit(tuner)
    if recorder.n_ended < n_configs:
        raise KeyboardInterrupt  # Tune turns the first Ctrl-C into an early, orderly end


def _settings(spec: MadSpec) -> list[Trial]:
    return [trial.at(seed, trial.spec.lr, trial.spec.weight_decay) for trial in spec.settings() for seed in spec.seeds]


def _pack_size(spec: MadSpec, resources: dict[str, float]) -> int:
    """As in one process, but by the cluster's GPUs; ASHA judges single trials, so with it there are no packs."""
    uses_gpu = may_use_gpus(spec.workers, spec.train.device, resources)
    is_packed = spec.packing == "always" or (spec.packing == "auto" and uses_gpu and not spec.sweep.asha)
    return spec.pack_size if is_packed else 1


def _grid_search(spec: MadSpec, log: TrialLog, size: int) -> tuple[StatelessSearcher, int]:
    """What Tune asks for the next configuration, and how many there are."""
    configs = [_config(pack) for pack in packs(remaining(spec, log), size)]
    return ListSearch(configs), len(configs)


def _study_search(
    spec: MadSpec, log: TrialLog, settings: Mapping[str, Trial], storage: optuna.storages.BaseStorage
) -> tuple[StatelessSearcher, int]:
    """The same for draws of Optuna."""
    done = Counter(name_of(row) for row in log.rows.values() if row["status"] != "failed")
    n_left = {name: max(0, spec.sweep.n_samples - done[name]) for name in settings}
    fixed = {name: {key: value for key, value in trial.labels().items() if key in SETTING} for name, trial in settings.items()}
    search = StudySearch(fixed, n_left, _space(spec), storage, metric=spec.train.stop_metric, time=EPOCH, whole=ROWS)
    return search, sum(n_left.values())


def _storage(out: Path, progress: Progress) -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = out / "optuna.journal"
    storage, n_dropped = open_journal(path)
    if n_dropped:
        progress.say(f"{path.name}: {n_dropped} line(s) cut short by a kill were dropped; what they told of is drawn again")
    return storage


def _config(pack: Sequence[Trial]) -> Config:
    labels = {key: value for key, value in pack[0].labels().items() if key != "key"}
    if len(pack) == 1:
        return labels
    points = [(trial.spec.seed, trial.spec.lr, trial.spec.weight_decay) for trial in pack]
    return {**{key: labels[key] for key in SETTING}, "n_packed": len(pack), "points": points}


def _space(spec: MadSpec) -> dict[str, optuna.distributions.BaseDistribution]:
    lowest, highest = min(spec.weight_decays), max(spec.weight_decays)
    rate = optuna.distributions.FloatDistribution(min(spec.lrs), max(spec.lrs), log=True)
    if highest == 0:
        return {"lr": rate, "weight_decay": optuna.distributions.FloatDistribution(0.0, 0.0)}
    # A logarithm needs a start above zero.
    decay = optuna.distributions.FloatDistribution(min(max(lowest, 1e-4), highest), highest, log=True)
    return {"lr": rate, "weight_decay": decay}


def _scheduler(spec: MadSpec) -> AshaPerSetting | None:
    if not spec.sweep.asha:
        return None
    grace_period = min(spec.sweep.grace_epochs, spec.epochs)
    return AshaPerSetting(SETTING, metric=spec.train.stop_metric, time=EPOCH, whole=ROWS, grace_period=grace_period)
