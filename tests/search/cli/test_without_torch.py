"""What can be answered without torch is: help, names of jobs, and keys that are misspelt."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "ray", "scipy", "matplotlib", "pandas", "optuna"}
UNKNOWN_KEY = "unknown key '{}'; did you mean '{}'"


def imported(*arguments):
    """What a process of its own printed, and the modules that it has imported."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return "\n".join([done.stdout, *(line for line in lines if not line.startswith("import time:"))]), modules


@pytest.mark.parametrize("package", ["search", "launch"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "the following arguments are required: JOB"),
        ("--help", "train one set of weights for every placement"),
        ("mad --help", "Score architectures on the MAD suite"),
        ("superent", "unknown command 'superent'"),
        ("placement configs/placement.yaml budgts=[1]", UNKNOWN_KEY.format("budgts", "budgets")),
        ("mad --preset quick epchs=2", "command line: epchs: " + UNKNOWN_KEY.format("epchs", "epochs")),
        (
            "progressive configs/progressive.yaml growth.traget_stacks=4",
            "growth.traget_stacks: " + UNKNOWN_KEY.format("traget_stacks", "target_stacks"),
        ),
        ("supernet configs/supernet.yaml train.sch.kind=wsd", "train.sch: unknown key 'sch'"),
        ("pipeline configs/quickstart.yaml supernet.rack.d_modle=8", "supernet.rack.d_modle: unknown key"),
        ("validate configs/validate.yaml budgt=1", UNKNOWN_KEY.format("budgt", "budget")),
        ("profile configs/profile.yaml mod=decode", UNKNOWN_KEY.format("mod", "mode")),
    ],
)
def test_names_and_keys_are_answered_without_torch(package, arguments, told):
    text, modules = imported("-m", package, *arguments.split())
    assert told in re.sub(r"\s+", " ", text)
    assert not HEAVY & modules


def test_a_module_brings_along_only_what_it_needs():
    _, modules = imported("-c", "import search.training.schedules")
    assert not {*HEAVY, "numpy", "models", "tasks"} & modules
    assert {name for name in modules if name.startswith("search.")} == {"search.training", "search.training.schedules"}
