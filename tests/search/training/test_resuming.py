"""Exact resumption, and the checkpoints it rests on."""

import math

import pytest
import torch
from safetensors.torch import save_file

from models import RackSpec
from search.training import checkpoint, loop
from tests.search.cases import CPU, data, dropout_spec, evaluate_on, member, rack_spec, run, same, weights


class KilledError(Exception):
    """Stands for a kill."""


def a_pack(dropout):
    spec, batches = dropout_spec() if dropout else rack_spec(), data()
    return [member(spec, batches, lr=lr, weight_decay=0.1, seed=seed) for lr, seed in ((1e-2, 0), (1e-3, 1), (3e-3, 2))]


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("n_before", [1, 5])
def test_resuming_is_exact(tmp_path, monkeypatch, dropout, n_members, n_before):
    """A run that is killed in an evaluation goes on from its last checkpoint to the same numbers, to the bit."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    keys = {"n_steps": 23, "eval_every": 4, "seed": 5}
    undisturbed = run(a_pack(dropout)[:n_members], **keys)

    def kill(single, row):  # noqa: ARG001 - the shape of the contract
        if row["step"] > 4 * n_before:
            raise KilledError

    path = tmp_path / "run.safetensors"
    with pytest.raises(KilledError):
        run(a_pack(dropout)[:n_members], **keys, on_evaluation=kill, checkpoint_path=path)
    assert path.exists()
    seen = []
    torch.manual_seed(99)
    keys |= {"on_evaluation": lambda _, row: seen.append(row["step"]), "checkpoint_path": path}
    resumed = run(a_pack(dropout)[:n_members], **keys)
    assert min(seen) == min(23, 4 * (n_before + 1))
    for one, other in zip(resumed, undisturbed, strict=True):
        assert one.history == other.history
        assert (one.status, one.step, one.best) == (other.status, other.step, other.best)
        assert same(weights(one), weights(other))
        assert same(one.best_weights, other.best_weights)


def test_resuming_a_pack_of_which_some_have_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    measured = evaluate_on(data(split="test"))

    def evaluate(pack, running):  # an accuracy that grows without end for one member and not at all for the other
        scripted = torch.tensor([single.step * (single.lr == 1e-3) / 100 for single in running])
        return {**measured(pack, running), "accuracy": scripted}

    keys = {"n_steps": 40, "eval_every": 4, "patience": 2, "evaluate": evaluate}

    def pack():
        batches = data()
        return [member(batches=batches, lr=lr, weight_decay=0.1) for lr in (1e-12, 1e-3)]

    undisturbed = run(pack(), **keys)
    assert [(single.status, single.step) for single in undisturbed] == [("stopped", 12), ("finished", 40)]

    def kill(_, row):
        if row["step"] > undisturbed[0].step + 4:
            raise KilledError

    path = tmp_path / "run.safetensors"
    with pytest.raises(KilledError):
        run(pack(), **keys, on_evaluation=kill, checkpoint_path=path)
    for one, other in zip(run(pack(), **keys, checkpoint_path=path), undisturbed, strict=True):
        assert (one.history, one.status) == (other.history, other.status)
        assert same(weights(one), weights(other))


def test_a_checkpoint_of_a_run_that_ended_is_not_trained_further(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "run.safetensors"
    (first,) = run([member()], checkpoint_path=path)
    (again,) = run([member()], checkpoint_path=path, on_evaluation=lambda *_: pytest.fail("trained"))
    assert (again.status, again.step, again.history) == ("finished", 20, first.history)
    assert same(weights(again), weights(first))


def test_checkpoints_are_written_now_and_then(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", math.inf)
    run([member()], checkpoint_path=path)
    assert not path.exists()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    run([member()], checkpoint_path=path)
    assert path.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "no state", "bad state"])
def test_a_damaged_checkpoint_is_a_readable_error(tmp_path, damage):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, {"x": torch.ones(100)}, {"step": 3})
    whole = path.read_bytes()
    if damage == "no state":
        save_file({"x": torch.ones(3)}, path)
    elif damage == "bad state":
        save_file({"x": torch.ones(3)}, path, metadata={"state": "{"})
    else:
        path.write_bytes({"cut": whole[:-50], "empty": b"", "garbage": b"not a checkpoint" * 10}[damage])
    with pytest.raises(ValueError, match=r"run.safetensors is damaged .*; delete it to start this trial again") as caught:
        checkpoint.read(path, CPU)
    assert not isinstance(caught.value.__cause__, Exception)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, {"x": torch.ones(3)}, {"step": 1})

    def cut_short(tensors, filename, metadata):  # noqa: ARG001 - what save_file takes
        filename.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", cut_short)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, {"x": torch.zeros(3)}, {"step": 2})
    tensors, state = checkpoint.read(path, CPU)
    assert state == {"step": 1}
    assert torch.equal(tensors["x"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_checkpoints_keep_tensors_and_state(tmp_path):
    path = tmp_path / "deep" / "er" / "run.safetensors"
    tensors = {"strided": torch.arange(6.0).view(2, 3).T, "empty": torch.empty(0), "scalar": torch.tensor(2.5)}
    checkpoint.save(path, tensors, {"history": [{"loss": math.nan}, {"loss": math.inf}]})
    found, state = checkpoint.read(path, CPU)
    assert same(found, tensors)
    assert math.isnan(state["history"][0]["loss"])
    assert math.isinf(state["history"][1]["loss"])


def test_shared_weights_are_saved_once_and_come_back():
    blocks = [{"mlp": {"kind": "mlp", "d_ff": 16}, "share": "one"}] * 3
    spec = RackSpec(d_model=16, vocab_size=8, stacks=[{"blocks": blocks}], tie_embeddings=True)
    first, second = spec.build(0), spec.build(1)
    saved = checkpoint.weights(first)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(tensor.numel() for tensor in first.parameters())
    checkpoint.load_weights(second, saved)
    tokens = data()[0][0]
    assert torch.equal(first(tokens), second(tokens))
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.load_weights(rack_spec().build(0), saved)


def test_weights_of_other_sizes_are_refused():
    small, large = rack_spec(({"kind": "mlp", "d_ff": 1},)).build(0), rack_spec(({"kind": "mlp", "d_ff": 16},)).build(0)
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.load_weights(large, checkpoint.weights(small))
