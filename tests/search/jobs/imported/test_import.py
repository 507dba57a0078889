"""The command `import`: what it leaves, what it prints, and that nothing remains of one that came to nothing."""

import argparse
import json
import re
import shutil

import pytest
import torch

from configs import ConfigError
from models.huggingface.importing import import_rack
from search import load_model
from search.cli.main import add_tools, main
from search.jobs.imported import job
from search.jobs.imported.job import TOKENIZER_FILES, import_model
from search.training import checkpoint
from tests.models.huggingface.tiny import saved

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path):
    """The folder of a tied model, with files that a tokenizer has."""
    folder = saved("qwen2 tied", tmp_path / "tiny-qwen")[1]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    return folder


@pytest.fixture
def command(capsys):
    """Runs the command: its exit status, and the lines of its output and of its errors."""

    def run(*words):
        capsys.readouterr()  # what making the model has printed
        parser = argparse.ArgumentParser(allow_abbrev=False)
        add_tools(parser.add_subparsers(dest="job", required=True))
        status = main(parser, "nothing", ["import", *map(str, words)])
        told = capsys.readouterr()
        return status, told.out.splitlines(), told.err.splitlines()

    return run


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_an_import_is_a_folder_that_is_loaded_as_the_model(command, model, tmp_path):
    out = tmp_path / "out"
    status, lines, errors = command(model, out)
    spec, rack = import_rack(model)
    n_parameters = sum(parameter.numel() for parameter in rack.parameters())
    assert (status, errors) == (0, [])
    assert lines == [f"{n_parameters:,} parameters in 7 layers, {4 * n_parameters:,} bytes of float32", str(out)]
    assert {path.name for path in out.iterdir()} == {
        *(".lock", "spec.json", "weights.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    }
    for name in TOKENIZER_FILES:
        assert not (model / name).exists() or (out / name).read_bytes() == (model / name).read_bytes()
    tensors, state = checkpoint.read(out / "weights.safetensors", CPU)
    assert state["rack"] == spec.saved()
    assert (state["source"], state["dtype"]) == ("tiny-qwen", "float32")
    assert re.fullmatch("[0-9a-f]{12}", state["source_hash"])
    assert "head.output.weight" not in tensors
    loaded = load_model(out)
    assert same(loaded, rack)
    assert not loaded.training
    assert loaded.head.output.weight is loaded.embedding.weight
    assert same(load_model(model), rack)


def test_the_same_command_does_nothing_again(command, model, tmp_path, monkeypatch):
    first = command(model, tmp_path / "out")
    monkeypatch.setattr(job, "read_rack", lambda *_, **__: pytest.fail("read again"))
    assert command(model, tmp_path / "out") == first
    moved = tmp_path / "elsewhere" / model.name
    shutil.copytree(model, moved)
    assert command(moved, tmp_path / "out") == first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_kept_in_the_type_that_is_asked_for(command, model, tmp_path, dtype):
    _, lines, _ = command(model, f"dtype={dtype}", tmp_path / "out")
    assert lines[0].endswith(f"bytes of {dtype}")
    loaded = load_model(tmp_path / "out")
    assert same(loaded, import_rack(model, dtype=dtype)[1])
    assert {parameter.dtype for parameter in load_model(tmp_path / "out", dtype="float32").parameters()} == {torch.float32}


def test_a_folder_with_something_else_is_refused_and_left_as_it_is(command, model, tmp_path):
    command(model, tmp_path / "out")
    status, _, errors = command(model, tmp_path / "out", "dtype=bfloat16")
    assert status == 2
    assert errors == [f"{tmp_path / 'out'}: holds the results of another specification (dtype changed); give another out="]
    (model / "tokenizer.json").write_text("{}")
    assert "(source_hash changed)" in command(model, tmp_path / "out")[2][0]
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    for other in (model, model / "config.json"):
        status, _, errors = command(model, other)
        assert status == 2
        assert errors == [f"{other}: holds something that is no import; give another folder"]
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_nothing_remains_of_a_model_that_is_refused(command, model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    status, lines, errors = command(model, tmp_path / "out")
    assert (status, lines, len(errors)) == (2, [], 1)
    assert "hidden_act = 'relu'" in errors[0]
    assert not (tmp_path / "out").exists()


def test_an_import_that_broke_off_has_no_weights_and_goes_on(command, model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "weights.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        status, _, errors = command(model, tmp_path / "out")
    assert status == 1
    assert "make room, and the same command goes on" in errors[0]
    assert not [path for path in (tmp_path / "out").iterdir() if "half-written" in path.name or path.name.startswith("weights")]
    with pytest.raises(ConfigError, match="the import is not finished"):
        load_model(tmp_path / "out")
    assert command(model, tmp_path / "out")[0] == 0
    assert same(load_model(tmp_path / "out"), load_model(model))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("dtype=float8",), "import: dtype: unknown type 'float8'; did you mean 'float"),
        (("dtyp=float32",), "import: unknown setting 'dtyp'; did you mean 'dtype'? Known: dtype"),
        (("--dtype", "float32"), "unknown option --dtype; settings are written key=value, in one word: dtype=float32"),
    ],
)
def test_a_wrong_word_is_told(command, model, tmp_path, words, told):
    status, _, errors = command(model, tmp_path / "out", *words)
    assert (status, len(errors)) == (2, 1)
    assert errors[0].startswith(told)
    assert not (tmp_path / "out").exists()


def test_a_damaged_import_is_told(model, tmp_path):
    import_model(model, tmp_path / "out")
    path = tmp_path / "out" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="its checksum does not match; delete the file, and the command that has imported it"):
        load_model(tmp_path / "out")
