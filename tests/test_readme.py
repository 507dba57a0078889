"""What the README tells people to type works."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.load import validate
from models import RackSpec
from search.cli.main import OVERRIDE, add_mad
from search.cli.run import mad_spec
from search.cli.show import read_spec
from search.jobs.table import JOBS, job_spec
from tests.models.huggingface.folders import tiny_llama

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [
    line.partition("#")[0].strip().removeprefix("./launch/run ")
    for block in blocks("bash")
    for line in block.splitlines()
    if line.strip()
]


def test_there_is_something_to_test():
    assert len(COMMANDS) >= 6
    assert COMMANDS[0] == "python -m launch hybridize configs/smollm2.yaml"


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r" (check|show|schema|kernels)\b", command)])
def test_check_and_show_commands_run(command):
    words = [sys.executable, *shlex.split(command)[1:]]
    expanded = [str(path) for word in words for path in (sorted(ROOT.glob(word)) if "*" in word else [word])]
    done = subprocess.run(expanded, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if " mad " in command])
def test_mad_commands_describe_a_run(command):
    """The runs themselves take minutes to days; here they are put together and validated."""
    parser = argparse.ArgumentParser()
    add_mad(parser.add_subparsers())
    words = shlex.split(command)[3:]
    overrides = [word for word in words if OVERRIDE.match(word)]
    spec, folder = mad_spec(parser.parse_args([word for word in words if word not in overrides]), overrides)
    assert spec.trials()
    assert folder.parent.name == "runs"


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(rf" ({'|'.join(JOBS)}) ", command)])
def test_commands_of_jobs_describe_a_run(command):
    """The runs themselves take minutes; here their files are read with what the command sets."""
    job, path, *overrides = shlex.split(command)[3:]
    assert isinstance(read_spec(ROOT / path, overrides), job_spec(job))


@pytest.mark.ray
@pytest.mark.slow
def test_the_first_command_runs(tmp_path):
    """On a tiny model, and on a task that needs no tokenizer."""
    short = [
        f"model={tiny_llama(tmp_path / 'model')}",
        "choices={window: {window: 3}}",
        "data={batch_size: 2, tasks: {recall: {task: {kind: in_context_recall, vocab_size: 16, seq_len: 12}}}}",
        *("search.budgets=[1]", "search.rivals={windows: 'all:window'}", "distil.budgets=[1]", "distil.n_steps=2"),
    ]
    command = [sys.executable, *shlex.split(COMMANDS[0])[1:], *short, f"out={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "attention = 1" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results.json", "trials.parquet", "hybridize.png", "spec.json", "start", "placement", "racks"} <= left


@pytest.mark.slow
def test_python_blocks_run(capsys):
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    told = capsys.readouterr().out
    assert "in-context-recall" in told
    assert "attention" in told


def test_the_yaml_shown_is_the_shipped_file():
    hybrid, mixer, space = blocks("yaml")
    validate(RackSpec, {"vocab_size": 8, "d_model": 128, "stacks": [{"blocks": [yaml.safe_load(mixer)]}]}, "README.md")
    for block, name in ((hybrid, "hybrid.yaml"), (space, "space.yaml")):
        shown = [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]
        shipped = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()
        assert shown == [line for line in shipped if not line.startswith("#")][-len(shown) :], name


def test_the_tree_names_folders_and_files_that_exist():
    tree = next(block for block in re.findall(r"```\n(configs/.*?)```", README, flags=re.DOTALL))
    for name in re.findall(r"^(\w+/)", tree, flags=re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    for name in re.findall(r"\b([a-z_]+\.py)\b", tree):
        assert list(ROOT.glob(f"*/**/{name}")), name
