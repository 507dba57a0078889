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
from search.devices import use_one_thread
from search.mad.job import Execute, run
from search.mad.spec import MadSpec

CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = ("quick", "baseline", "full")
OVERRIDE = re.compile(r"^[A-Za-z_][^\s=()]*=")
"""`key=value` words may stand anywhere on the line, between the others too."""


def add_mad(jobs: Any) -> None:
    """The arguments of the job `mad`."""
    parser = jobs.add_parser(
        "mad",
        help="score architectures on the MAD suite",
        description="Score architectures on the MAD suite. Settings come from a file or a preset; key=value sets any of them.",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, such as configs/mad_quick.yaml")
    parser.add_argument("--preset", choices=PRESETS, help="the settings of configs/mad_PRESET.yaml, instead of a file")
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="one architecture, layer by layer: mh-attention swiglu ...")
    parser.add_argument("--tasks", "--task", nargs="+", metavar="TASK", help="the tasks to run, as the file or preset has them")
    parser.add_argument("--mode", choices=("mad", "clean"), help="the reference's metric and selection, or held-out ones")
    parser.set_defaults(run=run_mad)


def run_mad(arguments: argparse.Namespace, overrides: Sequence[str], execute: Execute | None) -> int:
    """Put the spec together and run it."""
    if (arguments.config is None) == (arguments.preset is None):
        raise ConfigError(f"mad: give a config file or a --preset ({', '.join(PRESETS)}), one of the two")
    path = Path(arguments.config or CONFIGS / f"mad_{arguments.preset}.yaml")
    tree = read_yaml(path)
    outs = [text.removeprefix("out=") for text in overrides if text.startswith("out=")]
    if arguments.layers:
        tree["architectures"] = {"-".join(arguments.layers): {"layers": arguments.layers}}
    if arguments.tasks:
        own = tree.get("tasks")
        own = own if isinstance(own, dict) else {}
        tree["tasks"] = {name: own.get(name.replace("_", "-"), {}) for name in arguments.tasks}
    if arguments.mode:
        tree["mode"] = arguments.mode
    for text in overrides:
        if not text.startswith("out="):
            apply_override(tree, text)
    spec = validate(MadSpec, tree, str(path))
    use_one_thread()
    folder = Path(outs[-1] if outs else f"runs/mad-{spec.fingerprint()}")
    status = run(spec, folder, execute)
    print(folder)
    return status


def main(parser: argparse.ArgumentParser, execute: Execute | None, argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn bad input into one message and exit status 2; an interrupt into 130."""
    words = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in words if OVERRIDE.match(word)]
    arguments = parser.parse_args([word for word in words if word not in overrides])
    try:
        return int(arguments.run(arguments, overrides, execute))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
