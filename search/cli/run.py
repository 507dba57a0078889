"""What the two command lines share: arguments, presets, errors as one message each, exit statuses."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import ConfigError, read_yaml
from configs.load import apply_override, validate
from search.cli.mad_options import architectures, blame, from_here
from search.jobs.backend import Backend
from search.jobs.mad.job import run
from search.jobs.mad.spec import MadSpec
from search.jobs.table import JOBS
from search.training.devices import use_one_thread
from search.training.ranks import WorkersError

CONFIGS = Path(__file__).parents[2] / "configs"
_PRESETS = ("quick", "baseline", "full")
OVERRIDE = re.compile(r"""^[A-Za-z_](?:\["[^"]*"\]|[^\s=()"])*=""")
"""`key=value` words may stand anywhere on the line, between the others too."""


def add_mad(jobs: Any) -> None:
    """The arguments of the job `mad`."""
    parser = jobs.add_parser(
        "mad",
        help="score architectures on the MAD suite",
        description="Score architectures on the MAD suite. Settings come from a file or a preset; key=value sets any of them.",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, such as configs/mad_quick.yaml")
    parser.add_argument(
        "--preset",
        choices=_PRESETS,
        help="the settings of configs/mad_PRESET.yaml, instead of a file; quick, if neither is given",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="one architecture, layer by layer: names in configs/layers (mh-attention swiglu ...), some options changed "
        '("mh-attention(window=8)"), or kinds with their own defaults ("gated_delta_net(n_heads=4)" "attention()")',
    )
    parser.add_argument(
        "--racks",
        nargs="+",
        metavar="RACK",
        help='rack files, an architecture each, with overrides: configs/hybrid.yaml "configs/space.yaml(place=all:gdn)"',
    )
    parser.add_argument(
        "--tasks",
        "--task",
        nargs="+",
        metavar="TASK",
        help="the tasks to run, with the settings that the file or preset has for them",
    )
    parser.add_argument("--mode", choices=("mad", "clean"), help="the reference's metric and selection, or held-out ones")
    parser.set_defaults(run=run_mad)


def run_mad(arguments: argparse.Namespace, overrides: Sequence[str], backend: Backend) -> int:
    """Run what the command line asks for; prints the run's folder last."""
    spec, folder = mad_spec(arguments, overrides)
    use_one_thread()
    status = run(spec, folder, backend.mad)
    print(folder)
    return status


def add_jobs(jobs: Any) -> None:
    """The arguments of the jobs that one configuration file describes."""
    for name, job in JOBS.items():
        text = f"{job.help[0].upper()}{job.help[1:]}. key=value sets any key of the file, out=FOLDER the folder of the run."
        parser = jobs.add_parser(name, help=job.help, description=text)
        parser.add_argument("config", metavar="CONFIG", help="a YAML file")
        parser.set_defaults(run=run_job)


def run_job(arguments: argparse.Namespace, overrides: Sequence[str], backend: Backend) -> int:
    """Run the job of a configuration file; prints the run's folder last."""
    job = JOBS[arguments.job]
    tree, folder = read_tree(Path(arguments.config), overrides)
    if tree.get("job", arguments.job) != arguments.job:
        raise ConfigError(f"{arguments.config}: describes the job '{tree['job']}', not '{arguments.job}'")
    spec = validate(job.spec, tree, arguments.config)
    use_one_thread()
    out = Path(folder or f"runs/{arguments.job}-{spec.fingerprint()}")
    status = job.run(spec, out, backend)
    print(out)
    return status


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
    path = from_here(Path(arguments.config or CONFIGS / f"mad_{arguments.preset or _PRESETS[0]}.yaml"))
    layers, racks, tasks = (given or () for given in (arguments.layers, arguments.racks, arguments.tasks))
    settings = [text for text in overrides if not text.startswith("out=")]
    tree = read_yaml(path)
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
        spec = validate(MadSpec, tree, str(path))
    except ConfigError as error:
        raise blame(error, str(path), layers=layers, racks=racks, tasks=tasks, overrides=settings) from None
    return spec, Path(out_folder(overrides) or f"runs/mad-{spec.fingerprint()}")


def main(parser: argparse.ArgumentParser, backend: Backend, argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn bad input into one message and exit status 2, workers that failed into 1, an interrupt into 130."""
    words = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in words if OVERRIDE.match(word)]
    arguments = parser.parse_args([word for word in words if word not in overrides])
    try:
        return int(arguments.run(arguments, overrides, backend))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except WorkersError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
