"""The commands: every shipped file is right, and a mistake is one message and exit status 2."""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from configs import ConfigError
from configs.spec import SPEC_VERSION
from configs.storage import write_text
from search.cli import show
from search.cli.main import OVERRIDE, add_mad
from search.cli.run import mad_spec
from search.cli.show import read_spec, run_show
from search.jobs.mad import job
from search.training import checkpoint

ROOT = Path(__file__).parents[3]
ALL_CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=[str(path.relative_to(ROOT / "configs")) for path in ALL_CONFIGS])
def test_every_shipped_file_is_right(path):
    spec = read_spec(path)
    assert type(spec).model_validate(spec.to_dict()).fingerprint() == spec.fingerprint()


def search(*arguments):
    command = [sys.executable, "-m", "search", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)


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


def test_check_says_ok_of_every_shipped_file(run):
    assert run("check", *ALL_CONFIGS) == (0, [f"{path}: ok" for path in ALL_CONFIGS], [])


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
        (
            ["mad", "--preset", "quick", "--task", "in-context-recal"],
            "^--tasks: unknown task 'in-context-recal'; did you mean 'in-context-recall'",
        ),
        (
            ["mad", "--preset", "quick", "d_modle=128"],
            "^command line: d_modle: unknown key 'd_modle'; did you mean 'd_model'",
        ),
        (
            ["mad", "--preset", "quick", "d_model=128", "architectures.attention[0].n_heads=3"],
            "architectures.attention.*n_heads = 3 must divide d_model = 128",
        ),
        (["mad", "no/such/file.yaml"], "no/such/file.yaml: cannot be read: No such file"),
        (
            ["mad", "--preset", "quick", "--layers", "mh-atention"],
            "^--layers: layer 1: unknown layer 'mh-atention'; did you mean 'mh-attention'",
        ),
        (
            ["mad", "--layers", "attention(n_heads=4"],
            r"^--layers: layer 1: .*, character 10: this '\(' is not closed",
        ),
        (
            ["mad", "--layers", "swiglu", "attention(n_head=4)"],
            "^--layers: layer 2: n_head: .*did you mean 'n_heads'",
        ),
        (["mad", "--layers", "attention(n_heads=3)"], "^--layers: layer 1: n_heads = 3 must divide d_model"),
        (
            ["mad", "--layers", "swiglu", "attention(window=8)", "n_heads=4"],
            r"^command line: n_heads: unknown key 'n_heads'; .*; of a layer it .* in parentheses: \"attention\(n_heads=4\)\"$",
        ),
        (["mad", "--layers", "attention", "n_haeds=4"], "^command line: n_haeds: unknown key 'n_haeds'; Known: [^(]*$"),
        (["mad", "--racks", "configs/hybrid.yaml", "hybrid.yaml"], "^--racks: two architectures are called 'hybrid'"),
        (["mad", "--racks", "hybrid.yaml(d_model=8"], "^--racks: 'hybrid.yaml.*character 12.*is not closed"),
        (["mad", "--racks", str(ROOT / "configs/space.yaml")], "^--racks: .*this is a space, 6 choices are open"),
        (
            ["mad", "--racks", str(ROOT / "configs/hybrid.yaml(d_modle=3)")],
            "^--racks: .*hybrid.yaml: d_modle: .*did you mean 'd_model'",
        ),
        (
            ["mad", "--racks", str(ROOT / "configs/hybird.yaml")],
            "^--racks: .*configs/hybird.yaml: there is no such file; did you mean '.*configs/hybrid.yaml'",
        ),
        (
            ["mad", "--racks", "lama.yaml"],
            "^--racks: lama.yaml: there is no such file; did you mean '.*configs/racks/llama.yaml'",
        ),
        (["mad", "--racks", "x.yaml"], "^--racks: x.yaml: there is no such file$"),
        (["mad", "--preset", "quick", "lrs[7]=1"], "does not exist"),
        (["mad", "--layers", "attention(kernel=flash-attn)"], r"kernel = flash-attn: .*flash-attn"),
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


def test_mistakes_in_a_file_are_told_by_its_path_from_here(tmp_path, run):
    """Those of the command line beside them are not blamed on it."""
    text = (ROOT / "configs/mad_quick.yaml").read_text().replace("epochs: 8", "epochs: none")
    (tmp_path / "own.yaml").write_text(text)
    status, _, errors = run("mad", "../own.yaml", "--layers", "attention(n_heads=3)", "--tasks", "needel", "pack_size=0")
    assert status == 2
    assert {line.split(": ")[0] for line in errors} == {"--layers", "--tasks", "../own.yaml", "command line"}
    assert sum(bool(re.match(r"\.\./own\.yaml: epochs: .*got 'none'", line)) for line in errors) == 1


@pytest.mark.parametrize(
    ("job_arguments", "left"),
    [
        (["mad", ROOT / "configs/mad_quick.yaml", "out=../older"], "spec.json"),
        (["supernet", ROOT / "configs/supernet.yaml", "out=../older"], "spec.json"),
        (["progressive", ROOT / "configs/progressive.yaml", "out=../older"], "spec.json"),
        (["placement", ROOT / "configs/placement.yaml", "supernet=../older", "out=new"], "weights.safetensors"),
        (["supernet", "../older/spec.json", "out=new"], "spec.json"),
        (["show", "../older/spec.json"], "spec.json"),
        (["check", "../older/spec.json"], "spec.json"),
    ],
    ids=str,
)
def test_what_another_version_has_left_is_refused(tmp_path, run, job_arguments, left):
    older = {**read_spec(ROOT / "configs/supernet.yaml").to_dict(), "spec_version": 2, "key_of_that_version": 1}
    (tmp_path / "older").mkdir()
    (tmp_path / "older/spec.json").write_text(json.dumps(older))
    checkpoint.save(tmp_path / "older/weights.safetensors", {}, {"spec": older, "step": 1})
    status, _, errors = run(*job_arguments)
    remedy = "run it again into another folder, or use the mixrack that wrote it"
    told = f"../older/{left}: saved in version 2 of the format, but this mixrack reads version {SPEC_VERSION} alone: {remedy}"
    assert (status, errors) == (2, [told])


@pytest.mark.parametrize("job", ["mad", "supernet"])
def test_a_file_of_another_job_is_one_line(run, job):
    path = ROOT / "configs/placement.yaml"
    status, _, errors = run(job, path)
    assert (status, errors) == (2, [f"{path}: describes the job 'placement', not '{job}'"])


def test_a_folder_in_the_way_of_a_file_is_told_by_the_name_of_the_file(tmp_path, monkeypatch, run):
    (tmp_path / "goal").mkdir()
    monkeypatch.setattr(show, "run_check", lambda *_: write_text(tmp_path / "goal", "text"))
    told = f"{tmp_path / 'goal'}: Is a directory; put that right, and the same command goes on from here"
    assert run("check", "file.yaml") == (1, [], [told])


def test_show_counts_the_steps_of_all_draws(capsys):
    arguments = argparse.Namespace(config="configs/mad_quick.yaml", seq_len=None, parameters=False)
    run_show(arguments, ["sweep.method=optuna", "sweep.n_samples=3"], None)
    assert "30 trials, at most 12,000 optimizer steps" in capsys.readouterr().out


def test_paths_below_here_are_short(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"^configs/mad_quick\.yaml: architectures\.attention\[0\]: n_heads = 3 must divide"):
        spec_of("architectures.attention[0].n_heads=3")


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own():
    done = search("mad", "--preset", "quick", "--task", "in-context-recal")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean 'in-context-recall'" in done.stderr


def spec_of(*words):
    """What a command line of the job `mad` asks for."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_mad(parser.add_subparsers(dest="job"))
    overrides = [word for word in words if OVERRIDE.match(word)]
    return mad_spec(parser.parse_args(["mad", *(word for word in words if word not in overrides)]), overrides)[0]


def test_layers_and_racks_on_the_command_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    layers = ("gated_delta_net(n_heads=4)", "swiglu (d_ff=32, kind=swiglu)", "moe")
    spec = spec_of("--layers", *layers, "epochs=3", "--racks", "configs/hybrid.yaml", "configs/space.yaml(place=all:gdn)")
    assert list(spec.architectures) == ["-".join(layers), "hybrid", "space(place=all:gdn)"]
    assert spec.epochs == 3
    first, second = spec.architectures["-".join(layers)].stacks[0].expanded()
    assert (first.mixer.kind, first.mixer.n_heads, first.mlp.d_ff) == ("gated_delta_net", 4, 32)
    assert (second.mixer, second.mlp.kind) == (None, "moe")
    assert spec.architectures["hybrid"].stacks == read_spec(ROOT / "configs/hybrid.yaml").stacks


FIVE_MISTAKES = """
vocab_size: 8
d_model: 128
norm: rmsnrm
max_length: many
stacks:
  - n_blocks: 2
    block: {mixer: {kind: attention, n_heads: 3}, dropuot: 0.1}
  - n_blocks: 1
    block: {mlp: {kind: mlp, d_ff: -1}}
"""


def test_five_mistakes_are_five_messages_each_with_its_path(tmp_path, run):
    path = tmp_path / "wrong.yaml"
    path.write_text(FIVE_MISTAKES)
    status, out, errors = run("check", path)
    assert (status, out) == (2, [])
    assert sorted(line.removeprefix(f"{path}: ").split(": ")[0] for line in errors) == [
        "max_length",
        "norm",
        "stacks[0].block.dropuot",
        "stacks[0].block.mixer",
        "stacks[1].block.mlp",
    ]
    for word in ("did you mean 'rmsnorm'", "got 'many'", "did you mean 'dropout'", "n_heads = 3 must divide", "d_ff"):
        assert sum(word in line for line in errors) == 1, (word, errors)
