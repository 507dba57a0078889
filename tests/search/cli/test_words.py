"""A word that a command does not take is one line, which says what to write instead."""

import runpy
import sys
from pathlib import Path

import pytest

from configs import ConfigError
from search.cli.main import positive
from search.cli.show import read_spec
from search.runs.run_folder import run_folder
from tests.search.cases import mad_spec
from tests.search.growths import growth_spec
from tests.search.supernets import supernet_spec

ROOT = Path(__file__).parents[3]
SUPERNET = "configs/supernet.yaml"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process: its exit status, and the lines of its errors."""
    monkeypatch.chdir(ROOT)

    def run_here(words, package="search"):
        monkeypatch.setattr(sys, "argv", [package, *words.split(" ")])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(package, run_name="__main__", alter_sys=True)
        return caught.value.code, capsys.readouterr().err.splitlines()

    return run_here


WRITE = "settings are written key=value, in one word: "
TOLD = {
    f"supernet {SUPERNET} --n_steps 5": f"unknown option --n_steps; {WRITE}n_steps=5",
    f"supernet {SUPERNET} --n-steps=5": f"unknown option --n-steps=5; {WRITE}n_steps=5",
    f"supernet {SUPERNET} --out x": f"unknown option --out; {WRITE}out=x",
    f"supernet {SUPERNET} --debug": f"unknown option --debug; {WRITE}debug=VALUE",
    f"supernet {SUPERNET} n_steps 5": f"'n_steps 5': {WRITE}n_steps=5",
    f"supernet {SUPERNET} n_steps = 5": f"'n_steps = 5': {WRITE}n_steps=5",
    f"supernet {SUPERNET} configs/placement.yaml": "'configs/placement.yaml': one word too many",
    "mad --preset quick --taks needle": "unknown option --taks; did you mean --tasks?",
    "show configs/hybrid.yaml --seqlen 5": "unknown option --seqlen; did you mean --seq-len?",
    f"superent {SUPERNET}": "python -m search: unknown command 'superent'; did you mean 'supernet'? Known: check, ",
    f"{SUPERNET} n_steps=5": f"python -m search: a command comes before the file: python -m search supernet {SUPERNET}",
    "--n_steps=5 supernet": "python -m search: the command comes first, then '--n_steps=5'; settings are written key=value",
    "schema supernett": "unknown kind of file 'supernett'; did you mean 'supernet'?",
    "kernels foo": "'foo': one word too many",
    "supernet configs/hybrid.yaml": "a rack, not the job 'supernet'; python -m search show configs/hybrid.yaml",
    "supernet configs/layers/swiglu.yaml": "once it lies in configs/layers, python -m search mad --layers swiglu scores it",
    "supernet configs/tasks/needle.yaml": "once it lies in configs/tasks, python -m search mad --tasks needle trains on it",
    "supernet configs/suprnet.yaml": "No such file or directory; did you mean 'configs/supernet.yaml'?",
    f"supernet {SUPERNET} lr=[1e-3]": "lr: input should be a valid number: one value is expected, not a list: write 0.001",
    f"supernet {SUPERNET} lr=[1e-3,2e-3]": "lr: input should be a valid number: one value is expected, not a list",
    "mad configs/mad_quick.yaml lrs=1e-3": "command line: lrs: a list is expected: write [0.001] (got 0.001)",
    "check configs/jobs.yaml": "configs/jobs.yaml: cannot be read: No such file or directory",
}


@pytest.mark.parametrize("words", TOLD)
def test_a_wrong_word_is_one_line_that_says_what_to_write(run, words):
    status, lines = run(words)
    assert status == 2
    assert len(lines) == 1, lines
    assert TOLD[words] in lines[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"superent {SUPERNET}", "python -m launch: unknown command 'superent'; did you mean 'supernet'?"),
        ("show configs/hybrid.yaml", "it is a command of python -m search: python -m search show configs/hybrid.yaml"),
        (f"supernet {SUPERNET} --out x", f"unknown option --out; {WRITE}out=x"),
    ],
)
def test_the_same_on_ray(run, words, told):
    status, lines = run(words, "launch")
    assert (status, len(lines)) == (2, 1)
    assert told in lines[0]


@pytest.mark.parametrize("ours", [mad_spec, growth_spec, supernet_spec], ids=["mad", "progressive", "supernet"])
def test_the_folder_of_another_job_is_one_line(tmp_path, ours):
    theirs = supernet_spec() if ours is not supernet_spec else mad_spec()
    with run_folder(tmp_path / "run", theirs):
        pass
    with pytest.raises(ConfigError) as caught, run_folder(tmp_path / "run", ours()):
        pass
    told = f"{tmp_path / 'run'}: holds a run of the job '{theirs.job}', not of '{ours().job}'; give another out="
    assert str(caught.value) == told


def test_numbers_of_positions():
    assert positive("12") == 12
    with pytest.raises(Exception, match="at least 1"):
        positive("0")


def test_a_job_that_does_not_exist_is_told_with_the_nearest(tmp_path):
    (tmp_path / "job.yaml").write_text("job: superent\n")
    with pytest.raises(ConfigError, match="job: unknown job 'superent'; did you mean 'supernet'"):
        read_spec(tmp_path / "job.yaml")
