"""The job `progressive`: grows a rack stage by stage, choosing the next stack where there are candidates."""

from functools import partial
from pathlib import Path

from configs.records import Row, read_json
from search.jobs.backend import Backend
from search.jobs.progressive.candidates import choose_stack
from search.jobs.progressive.damage import forget_damaged
from search.jobs.progressive.figure import save_picture
from search.jobs.progressive.report import failures, table
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stages import finished_folders, is_finished, next_index, pending_choice, refuse_other_model
from search.runs.console import make_console
from search.runs.report import Say
from search.runs.run_folder import RESULTS, TRIALS, run_folder, write_parquet
from search.training.precision import settled


def run(spec: ProgressiveSpec, out: Path, backend: Backend, say: Say | None = None) -> int:
    """Run what the folder does not hold yet, and print the stages; 1 if a stage diverged, or a candidate failed.

    Interrupted or killed, the same call goes on where it stopped, to the same losses and weights. Each stage leaves its rack in
    `stages/`, a model of its own; `results.json`, `trials.parquet` (stages and candidates) and `growth.png` sum up.

    Raises:
        ConfigError: if the folder belongs to another run, or data and folders do not fit.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint of the last finished step.
    """
    console = make_console()
    say = say or partial(console.print, markup=False)
    spec = settled(spec, out, "train", spec.rack, say)
    with run_folder(out, spec):
        forget_damaged(spec, out, say)
        refuse_other_model(spec, out)
        if is_finished(out):
            say(f"all {len(finished_folders(out))} stages are finished")
        else:
            with backend.session():
                _finish(spec, out, backend, say)
        results = read_json(out / RESULTS)
        say(table(results["stages"]))
        save_picture(results, out)
        write_parquet(_trials(results), out / TRIALS)
        failed = failures(results)
        for text in failed:
            say(text)
    return 1 if failed else 0


def _trials(results: Row) -> list[Row]:
    """The rows of the stages, each with those of its candidates before it."""
    rows: list[Row] = []
    for row in results["stages"]:
        candidates = row.get("candidates", [])
        rows += [{"kind": "candidate", "stage": row["stage"], **each} for each in candidates]
        rows.append({name: value for name, value in row.items() if name != "candidates"} | {"name": row.get("chosen")})
    return rows


def _finish(spec: ProgressiveSpec, out: Path, backend: Backend, say: Say) -> None:
    while not is_finished(out):
        if pending_choice(spec, out, next_index(out)) is not None:
            choose_stack(spec, out, backend.train_candidates, say)
        backend.train_growth(spec, out, say)
