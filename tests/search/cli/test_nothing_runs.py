"""Nothing that is read imports or runs code: neither a configuration, nor what lies in a folder that somebody else has left."""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from configs import ConfigError
from configs.load import validate
from search.cli.main import add_jobs, add_mad, add_tools, main
from search.cli.show import read_spec
from search.jobs.progressive.spec import ProgressiveSpec
from search.runs.run_folder import run_folder
from search.training import checkpoint
from tests.search.growths import growth_spec

ROOT = Path(__file__).parents[3]
STRANGERS = ("strangers_code:run", "strangers_code.run", "strangers_code", "tests.strangers_code:run")


@pytest.fixture(autouse=True)
def _strangers_code(tmp_path, monkeypatch):
    """A module that could be imported, and may not be."""
    (tmp_path / "strangers_code.py").write_text("raise AssertionError('this code has run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert "strangers_code" not in sys.modules


def naming(text):
    """A growth whose time steps are said to come from somebody's function."""
    growth = {"time_interpretation": "depth", "stack_time_mapping": "custom", "custom_time_mapping": text}
    tree = growth_spec().saved()
    return {**tree, "growth": {**tree["growth"], **growth}}


@pytest.mark.parametrize("text", STRANGERS)
@pytest.mark.parametrize("command", ["check", "show", "progressive"])
def test_no_configuration_names_a_function(tmp_path, monkeypatch, capsys, text, command):
    monkeypatch.chdir(tmp_path)
    Path("growth.yaml").write_text(yaml.safe_dump(naming(text)))
    assert command_line(command, "growth.yaml") == 2
    assert "custom_time_mapping" in (told := capsys.readouterr().err) or "unknown time mapping" in told
    assert not Path("runs").exists()


def command_line(*words):
    """The exit status of a command."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True)
    for add in (add_jobs, add_mad, add_tools):
        add(jobs)
    return main(parser, "search.jobs.in_process:HERE", [str(word) for word in words])


@pytest.mark.parametrize("text", STRANGERS)
def test_no_folder_names_a_function(tmp_path, text):
    """The specification that somebody has left there is data, whatever it says."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/spec.json").write_text(json.dumps(naming(text)))
    with pytest.raises(ConfigError, match=r"spec\.json|another specification"), run_folder(tmp_path / "theirs", growth_spec()):
        pytest.fail("taken for our own")
    checkpoint.save(tmp_path / "theirs/weights.safetensors", {}, {"spec": naming(text), "step": 1})
    state = checkpoint.read(tmp_path / "theirs/weights.safetensors", torch.device("cpu"))[1]
    with pytest.raises(ConfigError, match=r"time mapping|custom_time_mapping"):
        validate(ProgressiveSpec, {name: value for name, value in state["spec"].items() if name != "spec_version"}, "theirs")


BASES = ("progressive_search.yaml", "placement.yaml", "mad_baseline.yaml", "quickstart.yaml", "space.yaml")


def texts_in(tree, path=()):
    """The place of every text in a tree."""
    if isinstance(tree, str):
        yield path
    elif isinstance(tree, dict | list):
        for key, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from texts_in(inner, (*path, key))


@pytest.mark.parametrize("name", BASES)
def test_no_text_of_a_configuration_is_code(tmp_path, name):
    """Wherever it stands: a kind, an init, an objective, a strategy, a task, a file."""
    text = (ROOT / "configs" / name).read_text()
    for number, path in enumerate(texts_in(yaml.safe_load(text))):
        tree = yaml.safe_load(text)
        place = tree
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = STRANGERS[number % len(STRANGERS)]
        (tmp_path / "read.yaml").write_text(yaml.safe_dump(tree))
        with suppress(ConfigError):
            read_spec(tmp_path / "read.yaml")
