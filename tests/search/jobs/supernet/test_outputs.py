"""Losses of some positions at a time are those of all at once, with the same gradients, and hold no more logits than they may."""

import pytest
import torch

from search.evaluation.memory_count import peak_bytes
from search.jobs.supernet import outputs
from search.jobs.supernet.outputs import pieces
from tests.search.supernets import CPU, Steps, gradients, supernet_spec, train_into

CASES = {
    "alone": {},
    "main": {"teacher": {"source": "main", "weight": 0.5, "hidden_weight": 0.5}},
    "teacher": {"teacher": {"source": "TRAINED", "weight": 0.5, "kl": "reverse", "temperature": 2.0}},
    "kept": {"teacher": {"source": "TRAINED", "weight": 0.5, "keep": 3, "kept_in": "KEPT"}},
    "anew": {"gradient_checkpointing": True, "placements_per_step": 2},
    "bf16": {"train": {"device": "cpu", "precision": "bf16", "scoring_precision": "fp32"}},
    "bf16 teacher": {
        "train": {"device": "cpu", "precision": "fp32", "scoring_precision": "bf16"},
        "teacher": {"source": "TRAINED", "weight": 1.0},
    },
    "tied": {"rack": {"tie_embeddings": True}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_into(folder, supernet_spec(n_steps=2, eval_every=2))
    return folder


def step(spec):
    steps = Steps(spec)
    return steps.backward(3), gradients(steps.model)


@pytest.mark.parametrize("n_at_once", [1, 7, 100])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradients_are_those_of_all_positions_at_once(case, n_at_once, trained, tmp_path, monkeypatch):
    given = {**CASES[case]}
    if "teacher" in given:
        places = {"TRAINED": str(trained), "KEPT": str(tmp_path)}
        given["teacher"] = {name: places.get(value, value) for name, value in given["teacher"].items()}
    spec = supernet_spec(**given)
    expected, expected_gradients = step(spec)
    monkeypatch.setitem(outputs.LOGIT_BYTES, "cpu", 4 * spec.rack.vocab_size * n_at_once)
    found, found_gradients = step(spec)
    is_exact = case != "bf16"
    assert found == pytest.approx(expected, rel=1e-5 if is_exact else 1e-2)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in found_gradients.items():
        close = {"rtol": 1e-4, "atol": 1e-6} if is_exact else {"rtol": 0.1, "atol": 1e-2}
        torch.testing.assert_close(gradient, expected_gradients[name], **close)


@pytest.mark.parametrize("teacher", [{}, {"teacher": {"source": "TRAINED", "weight": 0.5}}])
def test_it_holds_the_logits_of_a_piece_alone(teacher, tmp_path, monkeypatch):
    wide = {"rack": {"vocab_size": 3000}}
    if teacher:
        train_into(tmp_path, supernet_spec(**wide, n_steps=1, eval_every=1))
        teacher = {"teacher": {**teacher["teacher"], "source": str(tmp_path)}}
    peaks, n_at_once = {}, 8
    for name, n_bytes in (("all", 2**30), ("pieces", 4 * 3000 * n_at_once)):
        monkeypatch.setitem(outputs.LOGIT_BYTES, "cpu", n_bytes)
        steps = Steps(supernet_spec(**wide, **teacher))
        steps.backward()
        steps.optimizer.zero_grad()
        peaks[name] = peak_bytes(steps.backward)
    n_positions = steps.member.batches[0].inputs.numel()
    of_a_position = 4 * 3000 * (5 if teacher else 3)  # logits, log probabilities, gradients, and the same of a teacher
    assert peaks["all"] - peaks["pieces"] > 0.8 * of_a_position * (n_positions - 2 * n_at_once)


def test_a_head_that_reads_all_positions_together_is_not_cut(monkeypatch):
    monkeypatch.setitem(outputs.LOGIT_BYTES, "cpu", 1)
    plain, reporting = (supernet_spec(rack={"head": {"kind": "language_model", "z_loss": z}}).rack.build() for z in (0.0, 0.1))
    assert [piece.stop - piece.start for piece in pieces(plain, 16, CPU)] == [1] * 16
    assert pieces(reporting, 16, CPU) == [slice(0, 16)]
