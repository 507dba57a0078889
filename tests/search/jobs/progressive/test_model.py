"""A growth on a trained model: the model is the first stage as it is, and its stacks are the trunk."""

import io
import re
import signal

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F

from configs import ConfigError
from models.huggingface.importing import import_rack
from search import load_model
from search.cli.show_stages import planned, print_stages
from search.jobs.imported.job import import_model
from search.jobs.progressive import stage as stage_module
from search.jobs.supernet import outputs
from tests.models.huggingface.folders import tiny_llama
from tests.search.growths import BLOCK, RECALL, STACK, grow_here, model_growth, numbers, rows, same_bits, stages_here, state


def loss_of(rack, asked):
    """Of the held-out samples, computed by hand."""
    tokens = torch.from_numpy(asked.data.samples(asked.seed).sequences("validation", np.arange(16)).tokens)
    with torch.inference_mode():
        return float(F.cross_entropy(rack(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize("mode", ["append", "prepend"])
def test_the_model_is_the_first_stage_and_what_is_added_starts_as_nothing(tmp_path, mode):
    asked, lines = model_growth(tmp_path, growth={"building_mode": mode}), []
    assert grow_here(asked, tmp_path / "run", lines) == 0
    first, second, third = rows(tmp_path / "run")
    assert [row["steps"] for row in (first, second, third)] == [0, 6, 4]
    assert (first["stacks"], first["n_trained_parameters"], first["status"]) == (1, 0, "finished")
    _, model = import_rack(tmp_path / "model")
    assert first["loss"] == first["loss_before"] == first["loss_grown"]
    assert second["loss_before"] == second["loss_grown"] == first["loss"]
    assert third["loss_grown"] == third["loss_before"] == second["loss"]
    assert second["loss"] < first["loss"]
    assert any(line.startswith("stage 1 of 3: the model is taken as it is, and not trained: held-out loss ") for line in lines)
    taken, tokens = load_model(tmp_path / "run/stages/01"), torch.arange(24).view(2, 12) % 16
    assert same_bits(taken.state_dict(), model.state_dict())
    assert taken.head.output.weight is taken.embedding.weight
    with torch.inference_mode():
        assert torch.equal(taken(tokens), model(tokens))
    assert (tmp_path / "run/growth.png").stat().st_size > 10_000


def test_its_loss_is_that_of_the_model(tmp_path):
    asked = model_growth(tmp_path, objective={"kind": "clm"})
    stages_here(asked, tmp_path / "run")
    expected = loss_of(import_rack(tmp_path / "model")[1], asked)
    first, second, _ = rows(tmp_path / "run")
    assert first["loss"] == pytest.approx(expected, abs=1e-6)
    assert second["loss_grown"] == pytest.approx(expected, abs=1e-6)


def test_a_frozen_trunk_stays_to_the_bit_and_is_cached(tmp_path):
    stages_here(model_growth(tmp_path), tmp_path / "run")
    model, grown = import_rack(tmp_path / "model")[1].state_dict(), state(tmp_path / "run")
    below = [name for name in model if name.startswith(("embedding.", "stacks."))]
    assert all(torch.equal(grown[name], model[name]) for name in below)
    assert not torch.equal(grown["head.output.weight"], model["head.output.weight"])  # tied before, now a weight of its own
    for row in rows(tmp_path / "run")[1:]:
        assert (row["cache_mode"], row["cache_hit_rate"], row["trunk_forwards"]) == ("memory", 1.0, 0)


def test_a_trunk_may_train_on(tmp_path):
    growth = {"trunk_strategy": "full", "trunk_lr_scale": 0.5, "cache_mode": "auto"}
    stages_here(model_growth(tmp_path, growth=growth), tmp_path / "run")
    model, grown = import_rack(tmp_path / "model")[1].state_dict(), state(tmp_path / "run")
    assert all(not torch.equal(grown[name], tensor) for name, tensor in model.items() if name.endswith("query.weight"))
    assert torch.equal(grown["head.output.weight"], grown["embedding.weight"])  # tied as before
    first, second, third = rows(tmp_path / "run")
    assert second["loss_grown"] == second["loss_before"] == first["loss"]
    assert third["loss"] < first["loss"]


def test_a_trunk_may_be_stored_under_adapters(tmp_path):
    growth = {"trunk_strategy": "qlora", "progressive_qlora_rank": 2, "target_stacks": 2, "stage_steps": 6, "cache_mode": "auto"}
    growth |= {"joint_tuning_steps": 3, "fine_tune_mode": "adapters"}
    stages_here(model_growth(tmp_path, growth=growth), tmp_path / "run")
    first, second, joint = rows(tmp_path / "run")
    assert second["weight_bytes"] < first["weight_bytes"] + 4 * 16 * 16 * 8
    assert joint["steps"] == 3
    moved = [
        tensor for name, tensor in state(tmp_path / "run").items() if name.startswith("stacks.0") and ".progressive." in name
    ]
    assert any(tensor.abs().sum() > 0 for tensor in moved)


def test_what_import_has_left_is_the_same_model(tmp_path):
    stages_here(model_growth(tmp_path), tmp_path / "run")
    import_model(tmp_path / "model", tmp_path / "out")
    stages_here(model_growth(tmp_path, model=str(tmp_path / "out")), tmp_path / "imported")
    ours, theirs = ([{**numbers(row), "model": None} for row in rows(tmp_path / name)] for name in ("run", "imported"))
    for row in (*ours, *theirs):
        row.pop("cache_reason", None)
    assert ours == theirs
    assert same_bits(state(tmp_path / "run"), state(tmp_path / "imported"))
    import_model(tmp_path / "model", tmp_path / "half", dtype="bfloat16")
    stages_here(
        model_growth(tmp_path, model=str(tmp_path / "half"), growth={"target_stacks": 2, "stage_steps": 4}), tmp_path / "wide"
    )
    assert {tensor.dtype for tensor in state(tmp_path / "wide").values()} == {torch.float32}


def test_candidates_are_ranked_on_it(tmp_path):
    wide = {"n_blocks": 1, "block": {**BLOCK, "mlp": {"kind": "mlp", "d_ff": 40}}}
    given = {"stack": None, "candidates": {"one": STACK, "wide": wide}, "choice": {"n_steps": 3}}
    assert grow_here(model_growth(tmp_path, **given, growth={"target_stacks": 2, "stage_steps": 4}), tmp_path / "run") == 0
    assert rows(tmp_path / "run")[1]["chosen"] in ("one", "wide")


@pytest.mark.parametrize("strategy", ["frozen", "full", "qlora"])
@pytest.mark.parametrize(("stage", "step"), [(2, 4), (3, 1)])
def test_interrupted_it_ends_as_if_undisturbed(tmp_path, monkeypatch, strategy, stage, step):
    asked = model_growth(tmp_path, growth={"trunk_strategy": strategy, "cache_mode": "auto"}, checkpoint_every=2)
    compute = stage_module.GrowthStep.__call__

    def gradients(self, pack, running, number):
        if (running[0].batches.stage + 1, number + 1) == (stage, step):
            signal.raise_signal(signal.SIGINT)
        return compute(self, pack, running, number)

    with monkeypatch.context() as patch:
        patch.setattr(stage_module.GrowthStep, "__call__", gradients)
        with pytest.raises(KeyboardInterrupt):
            grow_here(asked, tmp_path / "cut")
    monkeypatch.setattr("search.jobs.progressive.stages.trained_rack", lambda *_: pytest.fail("was read again"))
    assert grow_here(asked, tmp_path / "cut") == 0
    monkeypatch.undo()
    assert grow_here(asked, tmp_path / "whole") == 0
    kept = ("stage", "steps", "loss_before", "loss_grown", "loss", "losses")
    ours, theirs = ([{name: row[name] for name in kept} for row in rows(tmp_path / name)] for name in ("cut", "whole"))
    assert ours == theirs
    assert same_bits(state(tmp_path / "cut"), state(tmp_path / "whole"))


def test_a_damaged_first_stage_is_taken_from_the_model_again(tmp_path):
    asked, lines = model_growth(tmp_path), []
    assert grow_here(asked, tmp_path / "run") == 0
    before = state(tmp_path / "run")
    path = tmp_path / "run/stages/01/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    assert grow_here(asked, tmp_path / "run", lines) == 0
    assert any("this stage is done again" in line for line in lines)
    assert same_bits(before, state(tmp_path / "run"))


def test_another_model_in_its_place_is_refused(tmp_path):
    asked = model_growth(tmp_path)
    assert grow_here(asked, tmp_path / "run") == 0
    for path in (tmp_path / "model").iterdir():
        path.unlink()
    tiny_llama(tmp_path / "model", rms_norm_eps=1e-6, rope_theta=10000.0)
    with pytest.raises(ConfigError, match=r"model: .*: the model has changed since .*run began; give another out="):
        grow_here(asked, tmp_path / "run")
    for path in (tmp_path / "model").iterdir():
        path.unlink()
    (tmp_path / "model").rmdir()
    assert grow_here(asked, tmp_path / "run") == 0  # what was taken is in the folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stack": None}, "stack: say what is added to the model, or give candidates"),
        ({"growth": {"target_stacks": 1}}, r"growth\.target_stacks: the model has 1 stack\(s\), so nothing would be added"),
        ({"growth": {"enabled": False}}, r"growth\.enabled: a model is the trunk of what grows on it"),
        ({"growth": {"stage_steps": [1, 2, 3]}}, r"growth\.stage_steps: 3 numbers for 2 stage\(s\)"),
        (
            {"growth": {"trunk_strategy": "qlora", "qlora_enabled": True, "progressive_qlora": False}},
            r"growth\.progressive_qlora: a model has no adapters but these",
        ),
        ({"model": "nowhere"}, "model: nowhere: no such folder or file"),
        ({"model": "package:no-such-thing"}, "model: package:no-such-thing: the package no-such-thing is not installed"),
        ({"data": {"task": {**RECALL, "vocab_size": 32}}}, r"rack\.vocab_size: 16 is too small"),
    ],
)
def test_what_does_not_fit_is_told_by_its_key(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        model_growth(tmp_path, **changes)


def test_a_rack_that_is_not_the_models_is_refused(tmp_path):
    rack = {**model_growth(tmp_path).rack.to_dict(), "tie_embeddings": False}
    with pytest.raises(ConfigError, match=r"rack: is not that of the model .*: give one of the two"):
        stages_here(model_growth(tmp_path, rack=rack), tmp_path / "run")


def test_a_text_is_read_by_the_tokenizer_of_the_model(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    words = ["<|endoftext|>", "<unk>", "one", "two", "three", "four"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text("one two three four " * (40 + number))
    text = {"kind": "text", "files": f"{texts}/*.txt", "seq_len": 8, "validation_fraction": 0.3, "folder": str(tmp_path / "kept")}
    growth = {"target_stacks": 2, "stage_steps": 4}
    asked = model_growth(tmp_path, data={"task": text, "n_train": None}, growth=growth)
    assert asked.to_dict()["data"]["task"]["tokenizer"] == {"model": str(folder)}
    assert grow_here(asked, tmp_path / "run") == 0
    with pytest.raises(ConfigError, match=r"rack\.vocab_size: 16 is too small"):  # for bytes
        model_growth(tmp_path, data={"task": {**text, "tokenizer": "bytes"}})


def test_show_tells_that_no_step_trains_it(tmp_path):
    first, second, _ = planned(model_growth(tmp_path))
    assert (first.n_steps, second.n_steps) == (0, 6)
    console = Console(width=200, record=True, file=io.StringIO())
    print_stages(console, model_growth(tmp_path))
    assert re.search(r"│\s+1 │\s+0 │\s+1 │.*│\s+0 │", console.export_text())


def test_losses_of_some_positions_at_a_time_are_those_of_all(tmp_path, monkeypatch):
    asked = model_growth(tmp_path)
    stages_here(asked, tmp_path / "whole")
    monkeypatch.setitem(outputs.LOGIT_BYTES, "cpu", 4 * 7 * asked.rack.vocab_size)
    stages_here(asked, tmp_path / "pieces")
    expected, found = ([row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "pieces"))
    assert found == pytest.approx(expected, rel=1e-4)
