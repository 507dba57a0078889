"""Exact resumption, and the checkpoints it rests on."""

import math

import pytest
import torch

from configs.records import DamagedError
from models import RackSpec
from search.training import checkpoint, loop
from search.training.checkpoint import Checkpoint
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
        run(a_pack(dropout)[:n_members], **keys, on_evaluation=kill, checkpoint=Checkpoint(path, "a run"))
    assert path.exists()
    seen = []
    torch.manual_seed(99)
    keys |= {"on_evaluation": lambda _, row: seen.append(row["step"]), "checkpoint": Checkpoint(path, "a run")}
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
        run(pack(), **keys, on_evaluation=kill, checkpoint=Checkpoint(path, "a run"))
    for one, other in zip(run(pack(), **keys, checkpoint=Checkpoint(path, "a run")), undisturbed, strict=True):
        assert (one.history, one.status) == (other.history, other.status)
        assert same(weights(one), weights(other))


def test_a_checkpoint_of_a_run_that_ended_is_not_trained_further(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "run.safetensors"
    (first,) = run([member()], checkpoint=Checkpoint(path, "a run"))
    (again,) = run([member()], checkpoint=Checkpoint(path, "a run"), on_evaluation=lambda *_: pytest.fail("trained"))
    assert (again.status, again.step, again.history) == ("finished", 20, first.history)
    assert same(weights(again), weights(first))


def test_checkpoints_are_written_now_and_then(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", math.inf)
    run([member()], checkpoint=Checkpoint(path, "a run"))
    assert not path.exists()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    run([member()], checkpoint=Checkpoint(path, "a run"))
    assert path.exists()


def flipped(whole, place):
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


DAMAGES = {
    "cut": lambda whole: whole[:-50],
    "empty": lambda _: b"",
    "garbage": lambda _: b"not a checkpoint" * 10,
    "a weight": lambda whole: flipped(whole, len(whole) - 7),
    "the step": lambda whole: whole.replace(b'step\\": 8', b'step\\": 4'),
    "a name": lambda whole: whole.replace(b"0.losses", b"0.Losses"),
    "no UTF-8": lambda whole: whole.replace(b"0.losses", b"0.\xff\xfesses"),
}


def kill_at_the_end(_, row):
    if row["step"] == 12:
        raise KilledError


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_run_starts_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    path, said = tmp_path / "run.safetensors", []
    keys = {"n_steps": 12, "eval_every": 4}
    (undisturbed,) = run([member()], **keys)
    with pytest.raises(KilledError):
        run([member()], **keys, checkpoint=Checkpoint(path, "a run"), on_evaluation=kill_at_the_end)
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    with pytest.raises(DamagedError, match=r"run\.safetensors: damaged"):
        checkpoint.read(path, CPU)
    (again,) = run([member()], **keys, checkpoint=Checkpoint(path, "a run", said.append))
    assert len(said) == 1
    assert f"{path}: damaged" in said[0]
    assert again.history == undisturbed.history
    assert same(weights(again), weights(undisturbed))


def test_a_checkpoint_of_another_run_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    path, said = tmp_path / "run.safetensors", []
    with pytest.raises(KilledError):
        run([member(lr=0.5)], eval_every=4, checkpoint=Checkpoint(path, "another"), on_evaluation=kill_at_the_end)
    run([member()], checkpoint=Checkpoint(path, "a run", said.append))
    assert said == [f"{path}: is of another run (another; this one is a run); it is left out, and the work starts anew"]
    assert checkpoint.read(path, CPU)[1]["fingerprint"] == "a run"


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


def test_what_an_interruption_makes_of_reading_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(DamagedError):
        checkpoint.read(path, torch.device("cpu"))
    monkeypatch.setattr(checkpoint, "was_interrupted", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.read(path, torch.device("cpu"))
