"""What the two command lines share: the commands and their arguments, errors as one message each, exit statuses."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any

from configs import ConfigError
from configs.storage import is_out_of_room
from search.cli.words import check_command, unknown_words
from search.jobs.table import JOBS
from search.runs.errors import RunError
from search.runs.interruption import was_interrupted

MAD_PRESETS = ("quick", "baseline", "full")
FILES = ("mad", *JOBS, "task", "rack", "layer")
"""What a configuration file may be of; all but the last three are jobs."""
OVERRIDE = re.compile(r"""^[A-Za-z_](?:\["[^"]*"\]|[^\s=()"])*=""")
"""`key=value` words may stand anywhere on the line, between the others too."""


def add_jobs(jobs: Any) -> None:
    """The jobs that one configuration file describes."""
    for name, line in JOBS.items():
        text = f"{line[0].upper()}{line[1:]}. key=value sets any key of the file, out=FOLDER the folder of the run."
        parser = jobs.add_parser(name, help=line, description=text)
        parser.add_argument("config", metavar="CONFIG", help="a YAML file")
        parser.set_defaults(run="search.cli.run:run_job")


def add_mad(jobs: Any) -> None:
    """The job `mad`."""
    parser = jobs.add_parser(
        "mad",
        help="score architectures on the MAD suite",
        description="Score architectures on the MAD suite. Settings come from a file or a preset; key=value sets any of them.",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, such as configs/mad_quick.yaml")
    parser.add_argument(
        "--preset",
        choices=MAD_PRESETS,
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
    parser.set_defaults(run="search.cli.run:run_mad")


def add_tools(jobs: Any) -> None:
    """The commands that run nothing."""
    check = jobs.add_parser("check", help="validate configuration files; nothing is built or run")
    check.add_argument("configs", nargs="+", metavar="CONFIG")
    check.set_defaults(run="search.cli.show:run_check")
    show = jobs.add_parser("show", help="print a configuration with every default filled in, and what each part costs")
    show.add_argument("config", metavar="CONFIG")
    show.add_argument("--seq-len", type=positive, metavar="N", help="positions that states and operations are counted for")
    show.add_argument(
        "--parameters", action="store_true", help="how each parameter starts and is trained; the optimizer's groups"
    )
    show.set_defaults(run="search.cli.show:run_show")
    imported = jobs.add_parser(
        "import",
        help="read a trained model of Hugging Face into a folder",
        description="Read a trained model, a folder of safetensors or a GGUF file, into a folder that runs start from. "
        "dtype=float32, bfloat16 or float16 sets the type of its weights; the file's, if not given.",
    )
    imported.add_argument("model", metavar="MODEL", help="a folder with config.json and safetensors, or a .gguf file")
    imported.add_argument("out", metavar="OUT", help="the folder that is written")
    imported.set_defaults(run="search.cli.import_model:run_import")
    kernels = jobs.add_parser("kernels", help="list the fast kernels: what is installed, what auto picks here and why")
    kernels.set_defaults(run="search.cli.kernels:run_kernels")
    schema = jobs.add_parser("schema", help="print the JSON Schema of configuration files; out=FILE writes it")
    schema.add_argument("file", nargs="?", metavar="JOB", help=f"one of {', '.join(FILES)}; all files, if not given")
    schema.set_defaults(run="search.cli.schema:run_schema")


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse wants to hear of it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is expected, got {text!r}")
    return int(text)


def main(parser: argparse.ArgumentParser, backend: str, argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn bad input into one message and exit status 2, runs that came to nothing into 1.

    What a command needs is imported when it is run; `backend` says where what runs the jobs is found, `module:name`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in words if OVERRIDE.match(word)]
    try:
        arguments = _parsed(parser, [word for word in words if word not in overrides])
        return int(resolve_name(arguments.run)(arguments, overrides, backend))
    except ConfigError as error:
        if was_interrupted():  # and this is what came of it
            raise
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if is_out_of_room(error):
            told, remedy = f"{error.filename or 'writing'}: {os.strerror(error.errno or 0)}", "make room"
        elif error.filename is None:
            raise
        else:
            told, remedy = f"{error.filename2 or error.filename}: {error.strerror}", "put that right"  # of a rename, the goal
        print(f"{told}; {remedy}, and the same command goes on from here", file=sys.stderr)
        return 1


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))  # noqa: SLF001 - no other way
    check_command(words, commands, parser.prog)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        raise unknown_words(unknown, commands[arguments.job].format_usage().replace("[", " ").replace("]", " ").split())
    return arguments
