"""Runs a job: the spec that file, preset, options and overrides amount to, and what runs it, imported once the spec is right."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from configs import ConfigError, read_yaml
from configs.limits import shortened
from configs.load import apply_override, check_keys, validate
from search.cli.mad_options import architectures, blame, from_here
from search.cli.main import MAD_PRESETS
from search.jobs.mad.spec import MadSpec
from search.jobs.table import job_run, job_spec
from search.runs.interruption import interruptions_raised

if TYPE_CHECKING:
    from search.jobs.backend import Backend

CONFIGS = Path(__file__).parents[2] / "configs"


def run_mad(arguments: argparse.Namespace, overrides: Sequence[str], backend: str) -> int:
    """Run what the command line asks for; prints the run's folder last."""
    spec, folder = mad_spec(arguments, overrides)
    run, execute = resolve_name("search.jobs.mad.job:run"), _started(backend).mad
    with interruptions_raised():
        status: int = run(spec, folder, execute)
    print(folder)
    return status


def run_job(arguments: argparse.Namespace, overrides: Sequence[str], backend: str) -> int:
    """Run the job of a configuration file; prints the run's folder last."""
    tree, folder = read_tree(Path(arguments.config), overrides)
    _check_job(tree, arguments.job, arguments.config)
    spec_class = job_spec(arguments.job)
    check_keys(spec_class, tree, arguments.config)
    spec = validate(spec_class, tree, arguments.config)
    out = Path(folder or f"runs/{arguments.job}-{spec.fingerprint()}")
    run, started = job_run(arguments.job), _started(backend)
    with interruptions_raised():
        status = run(spec, out, started)
    print(out)
    return status


def _check_job(tree: dict[str, Any], job: str, source: str) -> None:
    """ConfigError for the file of another job, and for one that is of none; with what to write for it."""
    if tree.get("job", job) != job:
        raise ConfigError(f"{source}: describes the job '{shortened(str(tree['job']))}', not '{job}'")
    kind = kind_of_file(tree)
    if kind in REMEDIES:
        told = f"{source}: a {kind}, not the job '{job}'; python -m search show {source} shows it"
        raise ConfigError(f"{told}, {REMEDIES[kind].format(source=source, name=Path(source).stem)}")


REMEDIES = {
    "rack": "python -m search mad --racks {source} scores it, and a job's file has one under rack:",
    "layer": "once it lies in configs/layers, python -m search mad --layers {name} scores it; a rack has it in layers:",
    "task": "once it lies in configs/tasks, python -m search mad --tasks {name} trains on it",
}
"""What to write for a file that is of no job."""


def kind_of_file(tree: dict[str, Any]) -> str | None:
    """What a file is of, by the key that says it: `job`, `task`, `layer` or `rack`; None if none of them does."""
    for key, kind in (("job", "job"), ("task", "task"), ("kind", "layer"), ("stacks", "rack"), ("layers", "rack")):
        if key in tree:
            return kind
    return None


def _started(backend: str) -> Backend:
    """What runs the jobs, in a process of one thread; Ray is not imported before."""
    resolve_name("search.training.devices:use_one_thread")()
    found: Backend = resolve_name(backend)
    return found


def read_tree(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The raw tree of a file with the overrides applied, and the folder that `out=` names."""
    tree = read_yaml(path)
    for text in overrides:
        if not text.startswith("out="):
            apply_override(tree, text)
    return tree, out_folder(overrides)


def out_folder(overrides: Sequence[str]) -> str | None:
    """The folder that the last `out=` names, if there is one."""
    outs = [text.removeprefix("out=") for text in overrides if text.startswith("out=")]
    if "" in outs:
        raise ConfigError("out=: a folder is expected")
    return outs[-1] if outs else None


def mad_spec(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[MadSpec, Path]:
    """The spec that file, preset, options and overrides amount to, and the run's folder."""
    if arguments.config is not None and arguments.preset is not None:
        raise ConfigError(f"mad: give a config file ({arguments.config}) or a --preset ({arguments.preset}), not both")
    path = from_here(Path(arguments.config or CONFIGS / f"mad_{arguments.preset or MAD_PRESETS[0]}.yaml"))
    layers, racks, tasks = (given or () for given in (arguments.layers, arguments.racks, arguments.tasks))
    settings = [text for text in overrides if not text.startswith("out=")]
    tree = read_yaml(path)
    _check_job(tree, "mad", str(path))
    if isinstance(tree.get("tasks"), list):
        tree["tasks"] = {name: {} for name in tree["tasks"]}  # so that tasks.memorization.n_train=100 finds its place
    if layers or racks:
        tree["architectures"] = architectures(layers, racks)
    if tasks:
        tree["only"] = tasks
    if arguments.mode:
        tree["mode"] = arguments.mode
    for text in settings:
        apply_override(tree, text)
    try:
        check_keys(MadSpec, tree, str(path))
        spec = validate(MadSpec, tree, str(path))
    except ConfigError as error:
        raise blame(error, str(path), layers=layers, racks=racks, tasks=tasks, overrides=settings) from None
    return spec, Path(out_folder(overrides) or f"runs/mad-{spec.fingerprint()}")
