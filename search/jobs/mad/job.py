"""The MAD job: run what is left, then sum up. Who runs the trials, this process or Ray Tune, is a parameter."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs import ConfigError
from configs.errors import below, yaml_path
from configs.records import Row, write_json
from models.assembly.assemble import without_memory
from models.assembly.cost import RackCost, cost
from models.ops.kernels import check_kernel
from search.jobs.mad.attempt import attempt
from search.jobs.mad.benchmark_data import DataFolders, benchmark_fingerprints, refuse_changed_data
from search.jobs.mad.figure import save_picture
from search.jobs.mad.report import print_scores
from search.jobs.mad.rows import drop_useless
from search.jobs.mad.run_trials import MakeModel, checkpoint_of
from search.jobs.mad.scores import score, to_summary
from search.jobs.mad.spec import MadSpec
from search.jobs.mad.trial import Trial, TrialSpec
from search.runs.console import Progress, label
from search.runs.own_process import check_pickled
from search.runs.run_folder import RESULTS, TRIALS, TrialLog, make_folder, run_folder, tell_damage, write_parquet
from search.training.devices import resolve_device
from tasks import Finite

CHECKPOINTS = "checkpoints"

Execute = Callable[[MadSpec, TrialLog, Path, Progress, MakeModel | None], None]


def run(
    spec: MadSpec, out: Path, execute: Execute | None = None, make_model: MakeModel | None = None, *, show: bool = True
) -> int:
    """Run the trials that the folder does not hold yet, print the table, and return the exit status.

    0 if every trial ran (one that diverged did run, and is reported), 1 if any failed, or if an architecture has no score since
    all trials of a setting diverged. Interrupted or killed, the same call goes
    on where it stopped; trials that failed are tried again.

    Args:
        spec: the run.
        out: its folder.
        execute: runs what is left and adds each row to the log; None runs the trials in this process, one after the other.
        make_model: builds the architectures that are null in the spec.
        show: whether the table is printed.

    Raises:
        ConfigError: if the folder belongs to another run, a task's files cannot be read, or an architecture is null and there is
            no `make_model`.
    """
    if make_model is None and None in spec.architectures.values():
        raise ConfigError("architectures: null stands for a model given by the caller of search.benchmark")
    if execute is None:
        _check_here(spec)
        if spec.isolates:
            check_pickled(make_model, "the caller's model")
    data_folders = DataFolders.of(spec.data_folder)
    if data_folders.kept is not None:
        make_folder(data_folders.kept)
    fingerprints = benchmark_fingerprints(spec, data_folders.benchmark)
    with run_folder(out, spec):
        log, n_trials = TrialLog(out / "trials.jsonl"), n_expected(spec)
        useless = drop_useless(spec, log, out / CHECKPOINTS)
        refuse_changed_data(log, fingerprints, out)
        n_done = sum(row["status"] != "failed" for row in log.rows.values())
        progress = Progress(n_trials, n_done)
        if data_folders.benchmark is not None:
            drawn = "; validation, which it has not, is drawn" if spec.mode == "clean" else ""
            progress.say(f"data: MAD's own, {len(fingerprints)} setting(s) of {data_folders.benchmark.path}{drawn}")
        tell_damage(log, progress.say, "those trials run again")
        for text in useless:
            progress.say(text)
        if n_done >= n_trials:
            progress.say(f"all {n_trials} trials are finished")
        else:
            _check_files(spec)
            if n_done:
                progress.say(f"going on: {n_done} of {n_trials} trials are finished")
            with progress:
                (execute or execute_here)(spec, log, out, progress, make_model)
        return finish_sweep(spec, log, out, show=show)


def _check_files(spec: MadSpec) -> None:
    """What is wrong with a task's files is said at once, not by every trial."""
    for name, setting in spec.tasks.items():
        task = setting.instance()
        if isinstance(task, Finite):
            with below("tasks", name, "task"):
                task.n_rows("train")


def _check_here(spec: MadSpec) -> None:
    """What this process cannot do is said before anything is written."""
    if spec.sweep.method != "grid" or spec.sweep.asha:
        raise ConfigError("sweep.method optuna and sweep.asha are scheduled by Ray Tune: use python -m launch mad")
    resolve_device(spec.train.device)
    problems = []
    for name, trial in first_settings(spec).items():
        modules = () if trial.rack is None else without_memory(trial.rack).modules()
        kernels = {(str(module.kernel_op), str(module.kernel)) for module in modules if hasattr(module, "kernel_op")}
        for op, kernel in sorted(kernels):
            try:
                check_kernel(op, kernel)
            except ValueError as error:
                problems.append(f"{yaml_path(('architectures', name))}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def n_expected(spec: MadSpec) -> int:
    """How many trials the run consists of."""
    if spec.sweep.method == "optuna":
        return sum(1 for _ in spec.settings()) * len(spec.seeds) * spec.sweep.n_samples
    return len(spec.trials())


def execute_here(spec: MadSpec, log: TrialLog, out: Path, progress: Progress, make_model: MakeModel | None = None) -> None:
    """Run what is left, one after the other, in this process or each in its own, as the spec says and as kills have shown.

    A trial that raises, dies, leaves or hangs becomes a row that says so, and the next one starts; of a pack, one by one.
    """

    def moved(trial: Trial, row: dict[str, float]) -> None:
        progress.moved(trial.spec.fingerprint(), label(trial.labels()), row, trial.spec.n_steps)

    for pack in packs(remaining(spec, log), pack_size(spec)):
        options = {"make_model": make_model, "on_evaluation": moved, **trial_options(spec, out)}
        for row in attempt(pack, limits=spec, markers=out, **options):
            log.add(row)
            progress.finished(row)
        forget(pack, out)


def forget(pack: Sequence[Trial], out: Path) -> None:
    """Remove the checkpoints of trials whose rows are in the log."""
    for trials in (pack, *([trial] for trial in pack)):
        checkpoint_of(trials, out / CHECKPOINTS).remove()


def remaining(spec: MadSpec, log: TrialLog) -> list[Trial]:
    """The trials of the grid without a row, or with one that failed; each only once."""
    done = {key for key, row in log.rows.items() if row["status"] != "failed"}
    left = {trial.spec.fingerprint(): trial for trial in spec.trials()}
    return [trial for key, trial in left.items() if key not in done]


def pack_size(spec: MadSpec) -> int:
    """How many trials are trained as one model: `auto` packs on a GPU; on a CPU one process a trial is faster."""
    if spec.packing == "auto":
        return spec.pack_size if resolve_device(spec.train.device).type == "cuda" else 1
    return spec.pack_size if spec.packing == "always" else 1


def packs(trials: Sequence[Trial], size: int) -> Iterator[list[Trial]]:
    """Neighbours that differ in learning rate, weight decay and seed alone, at most `size` together."""
    pack: list[Trial] = []
    for trial in trials:
        if pack and (len(pack) == size or trial.at(0, 1.0, 0.0).spec != pack[0].at(0, 1.0, 0.0).spec):
            yield pack
            pack = []
        pack.append(trial)
    if pack:
        yield pack


def trial_options(spec: MadSpec, out: Path) -> dict[str, Any]:
    """What `run_trials` needs beside the trials."""
    return {"folder": out / CHECKPOINTS, "data_folders": DataFolders.of(spec.data_folder), "save_weights": spec.save_weights}


def finish_sweep(spec: MadSpec, log: TrialLog, out: Path, *, show: bool) -> int:
    """Write the summary, the Parquet file and the picture; print the table, if it is to be shown; the exit status."""
    rows = rows_in_grid_order(spec, log)
    scores = score(spec, rows)
    costs = baseline_costs(spec)
    sizes = {name: {"n_parameters": costed.n_parameters, "state": costed.state} for name, costed in costs.items()}
    write_json(out / RESULTS, to_summary(scores, sizes))
    write_parquet(rows, out / TRIALS)
    save_picture(scores, out / "scores.png")
    if show:
        print_scores(scores, costs, out)
    has_all = all(scores.of(name).value is not None for name in spec.architectures)
    return 0 if has_all and "failed" not in scores.problems() else 1


def rows_in_grid_order(spec: MadSpec, log: TrialLog) -> list[Row]:
    """The rows in the order of the grid, whenever they ended; what Optuna asked for, in the order in which it ended."""
    if spec.sweep.method == "optuna":
        return list(log.rows.values())
    asked = dict.fromkeys(trial.spec.fingerprint() for trial in spec.trials())
    return [log.rows[key] for key in asked if key in log.rows]


def baseline_costs(spec: MadSpec) -> dict[str, RackCost]:
    """The cost of each architecture at the baseline of the run's first task."""
    first = first_settings(spec)
    return {name: cost(trial.rack, trial.setting.instance().seq_len) for name, trial in first.items() if trial.rack is not None}


def first_settings(spec: MadSpec) -> dict[str, TrialSpec]:
    """Each architecture at the baseline of the run's first task."""
    trials = list(spec.settings())
    return {name: next(trial.spec for trial in trials if trial.architecture == name) for name in spec.architectures}
