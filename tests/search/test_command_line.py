"""The commands: every shipped file is right, and a mistake is one message and exit status 2."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from search.describe import read_spec
from search.mad import job

ROOT = Path(__file__).parents[2]
ALL_CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=[str(path.relative_to(ROOT / "configs")) for path in ALL_CONFIGS])
def test_every_shipped_file_is_right(path):
    spec = read_spec(path)
    assert type(spec).model_validate(spec.to_dict()).fingerprint() == spec.fingerprint()


def search(*arguments):
    command = [sys.executable, "-m", "search", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_check_says_ok_of_every_shipped_file():
    done = search("check", *ALL_CONFIGS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{path}: ok" for path in ALL_CONFIGS]


WRONG = {
    "misspelt key": ("d_modle: 128\nvocab_size: 8\nd_model: 128\nlayers: [attention]\n", "d_modle: .*did you mean 'd_model'"),
    "heads": (
        "d_model: 128\nvocab_size: 8\nlayers: [{kind: attention, n_heads: 3}]\n",
        r"layers\[0\]: n_heads = 3 must divide d_model",
    ),
    "unreadable": ("d_model: [128\nvocab_size: 8\n", "line .*not readable as YAML"),
    "not a mapping": ("- 1\n", "a mapping is expected"),
    "unknown job": ("job: madd\n", "unknown job 'madd'"),
    "unknown layer kind": ("kind: atention\n", "unknown kind 'atention'; did you mean 'attention'"),
    "unknown task kind": ("task: {kind: compresion}\n", "unknown task 'compresion'; did you mean 'compression'"),
    "job without heads": ("job: mad\narchitectures: {a: [{kind: attention, n_heads: 3}]}\ntasks: [compression]\n", "n_heads = 3"),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in this process and in an empty folder: exit status, output and errors, line by line."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(job, "execute_here", lambda *_: pytest.fail("trained"))

    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", ["search", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("search", run_name="__main__", alter_sys=True)
        told = capsys.readouterr()
        assert not list(folder.iterdir())
        return caught.value.code, told.out.splitlines(), told.err.splitlines()

    return run_here


def test_check_says_of_each_wrong_file_what_is_wrong(tmp_path, run):
    paths = []
    for name, (text, _) in WRONG.items():
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(text)
    right, missing = ROOT / "configs/mad_quick.yaml", tmp_path / "missing.yaml"
    status, out, errors = run("check", *paths, right, missing)
    assert (status, out) == (2, [f"{right}: ok"])
    assert errors.pop() == f"{missing}: cannot be read: No such file or directory"
    for path, (_, expected), line in zip(paths, WRONG.values(), errors, strict=True):
        assert line.startswith(str(path))
        assert re.search(expected, line), line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mad", "--preset", "quick", "--task", "in-context-recal"], "did you mean 'in-context-recall'"),
        (["mad", "--preset", "quick", "d_modle=128"], "d_modle: unknown key 'd_modle'; did you mean 'd_model'"),
        (
            ["mad", "--preset", "quick", "d_model=128", "architectures.attention[0].n_heads=3"],
            "architectures.attention.*n_heads = 3 must divide d_model = 128",
        ),
        (["mad", "no/such/file.yaml"], "no/such/file.yaml: cannot be read: No such file"),
        (["mad", "--preset", "quick", "--layers", "mh-atention"], "did you mean 'mh-attention'"),
        (["mad", "--preset", "quick", "lrs[7]=1"], "does not exist"),
        (["mad", "a.yaml", "--preset", "quick"], r"give a config file \(a.yaml\) or a --preset \(quick\), not both"),
        (["show", "no/such/file.yaml"], "cannot be read"),
        (["mad", "--preset", "quick", "out=/dev/null/run"], "/dev/null/run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_message(run, arguments, expected):
    status, out, errors = run(*arguments)
    assert (status, out) == (2, [])
    assert len(errors) == 1, errors
    assert re.search(expected, errors[0]), errors


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own():
    done = search("mad", "--preset", "quick", "--task", "in-context-recal")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean 'in-context-recall'" in done.stderr
