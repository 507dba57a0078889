"""The precision of a run: what `auto` comes to on a CPU, that it stays, and that nothing is rounded that was not to be."""

import json

import pytest
import torch

from search.evaluation.supernet_evaluator import SupernetEvaluator, score_key
from search.jobs.in_process import HERE
from search.jobs.supernet import job
from search.runs.run_folder import saved_spec
from search.training import precision
from search.training.devices import autocast, float32_products
from search.training.mixture import Mixture
from search.training.precision import Gain, gain_of_bf16, settled
from tests.search.supernets import CPU, supernet_member, supernet_spec

HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.fixture
def gains(monkeypatch):
    """A processor with bf16 on which blocks of any size gain what the function is given."""

    def gain(training, scoring):
        monkeypatch.setattr(precision, "gain_of_bf16", lambda _: Gain(training, scoring))
        monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: True)

    return gain


def chosen(out, **train):
    spec = supernet_spec(train={"device": "cpu", **train})
    told = []
    train = settled(spec, out, "train", spec.rack, told.append).train
    return train.precision, train.scores_in, bool(told)


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ((2.0, 2.0), ("bf16", "bf16", True)),
        ((2.0, 1.0), ("bf16", "auto", True)),
        ((1.0, 2.0), ("auto", "bf16", True)),
        ((1.1, 1.1), ("auto", "auto", True)),
    ],
)
def test_bf16_is_taken_for_what_it_makes_faster(tmp_path, gains, gain, expected):
    gains(*gain)
    assert chosen(tmp_path) == expected


def test_what_is_said_is_kept(tmp_path, gains):
    gains(9.0, 9.0)
    assert chosen(tmp_path, precision="fp32") == ("fp32", "fp32", False)
    assert chosen(tmp_path, scoring_precision="fp32") == ("bf16", "fp32", True)
    assert chosen(tmp_path, precision="fp32", scoring_precision="auto") == ("fp32", "bf16", True)
    assert chosen(tmp_path, scoring_precision="auto") == ("bf16", "bf16", True)


def test_what_is_told_is_of_the_processor(tmp_path, gains, monkeypatch):
    """Although there is a GPU, which the run is not to use."""
    gains(2.0, 1.0)
    spec, told = supernet_spec(), []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "a GPU")
    settled(spec, tmp_path, "train", spec.rack, told.append)
    assert told[0].startswith("precision: training bf16, scores fp32; on ")
    assert "a GPU" not in told[0]


def test_a_processor_without_bf16_is_not_measured(tmp_path, gains, monkeypatch):
    gains(9.0, 9.0)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    assert chosen(tmp_path) == ("auto", "auto", False)


def test_a_torch_without_onednn_is_not_asked(tmp_path, gains, monkeypatch):
    gains(9.0, 9.0)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    monkeypatch.delattr("torch.ops.mkldnn._is_mkldnn_bf16_supported")
    assert chosen(tmp_path) == ("auto", "auto", False)


def test_small_models_are_not_measured():
    assert gain_of_bf16(supernet_spec().rack) is None


@pytest.mark.skipif(not HAS_BF16, reason="this processor computes nothing in bf16")
def test_a_measurement_is_short_and_moves_no_generator():
    block = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": {"attention": {"kind": "attention"}, "none": None}}}
    rack = supernet_spec(rack={"d_model": 640}, block={**block, "mlp": {"kind": "swiglu"}}).rack
    before = torch.get_rng_state()
    assert all(0.1 < each < 30 for each in gain_of_bf16(rack))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_of_any_size_is_measured_at_sizes_that_training_has(monkeypatch):
    """Sixteen positions of a large model are casts of its weights: bf16 looked slower where it is twice as fast."""
    measured = []
    monkeypatch.setattr(precision, "_seconds", lambda _, module, x: measured.append((module, x)) or {"fp32": 2.0, "bf16": 1.0})
    wide = {"mixer": {"kind": "attention"}, "mlp": {"kind": "swiglu", "d_ff": 28672}}
    for d_model in (640, 2048, 8192):
        measured.clear()
        assert gain_of_bf16(supernet_spec(rack={"d_model": d_model}, block=wide).rack) == (2.0, 2.0)
        assert all(x.shape[:2].numel() >= 64 for _, x in measured)
        assert max(x.numel() // x.shape[-1] * sum(p.numel() for p in module.parameters()) for module, x in measured) < 500_000_000


def test_a_run_goes_on_in_the_precision_that_it_began_in(tmp_path, gains):
    spec = supernet_spec()
    gains(2.0, 1.0)
    assert job.run(spec, tmp_path / "run", HERE) == 0
    kept = saved_spec(tmp_path / "run")["train"]
    assert (kept["precision"], kept["scoring_precision"]) == ("bf16", "auto")
    found = json.loads((tmp_path / "run/results.json").read_text())
    gains(1.0, 2.0)
    assert job.run(spec, tmp_path / "run", HERE) == 0
    assert json.loads((tmp_path / "run/results.json").read_text()) == found
    gains(1.0, 1.0)
    assert job.run(spec, tmp_path / "float32", HERE) == 0
    single = json.loads((tmp_path / "float32/results.json").read_text())
    assert saved_spec(tmp_path / "float32")["train"]["precision"] == "auto"
    assert found["loss"] != single["loss"]
    assert found["loss"] == pytest.approx(single["loss"], rel=0.02)


def test_what_is_said_of_a_run_that_goes_on_is_not_put_aside(tmp_path, gains):
    gains(2.0, 2.0)
    assert job.run(supernet_spec(), tmp_path, HERE) == 0
    assert chosen(tmp_path) == ("bf16", "bf16", False)
    assert chosen(tmp_path, scoring_precision="fp32") == ("bf16", "fp32", False)
    assert chosen(tmp_path, precision="fp32") == ("fp32", "fp32", False)


def test_a_run_of_a_cpu_goes_on_with_a_gpu(tmp_path, gains, monkeypatch):
    gains(2.0, 1.0)
    assert job.run(supernet_spec(), tmp_path, HERE) == 0
    monkeypatch.setattr(precision, "resolve_device", lambda _: torch.device("cuda"))
    assert chosen(tmp_path) == ("bf16", "auto", False)
    assert chosen(tmp_path / "new") == ("auto", "auto", False)


@pytest.mark.parametrize("before", ["none", "ieee", "bf16"])
def test_float32_is_float32_whatever_torch_was_told(before):
    """How far `medium` rounds, if at all, is the processor's: with AMX to bfloat16, with AVX512-BF16 alone it hardly does."""
    x, y = (torch.randn(512, 512, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    switch = torch.backends.mkldnn.matmul
    own = switch.fp32_precision
    try:
        switch.fp32_precision = "ieee"
        exact = x @ y
        switch.fp32_precision = before
        told = switch.fp32_precision
        with autocast(CPU, "fp32"):
            assert torch.equal(x @ y, exact)
        with float32_products(CPU, "medium"):
            assert switch.fp32_precision == "bf16"
            assert (x @ y - exact).abs().max() < 0.5
        assert told == switch.fp32_precision
    finally:
        switch.fp32_precision = own


def test_training_is_rounded_only_if_it_is_said(tmp_path):
    """Backward passes too, which no autocast is around."""
    switch = torch.backends.mkldnn.matmul
    losses = {}
    for name in ("fp32", "medium"):
        for told in ("ieee", "bf16"):
            switch.fp32_precision = told
            try:
                spec = supernet_spec(rack={"d_model": 64}, train={"device": "cpu", "precision": name})
                losses[name, told] = job.train_supernet(spec, tmp_path / f"{name}-{told}", say=lambda _: None)["loss"]
                assert switch.fp32_precision == told
            finally:
                switch.fp32_precision = "none"
    assert losses["fp32", "ieee"] == losses["fp32", "bf16"]
    assert losses["medium", "ieee"] == losses["medium", "bf16"]
    assert losses["medium", "ieee"] == pytest.approx(losses["fp32", "ieee"], rel=0.02)


def test_scores_of_two_precisions_are_never_taken_for_each_other():
    spec = supernet_spec()
    supernet = supernet_member(spec).model.eval()
    keys = {name: score_key(supernet, "data", "loss", precision=name) for name in ("auto", "fp32", "bf16", "medium")}
    assert keys["auto"] == keys["fp32"]
    assert len(set(keys.values())) == 3
    batches = Mixture(spec.data, seed=0, device=CPU).evaluation(2, 4)
    scores = {}
    for name in ("fp32", "bf16", "medium"):
        evaluator = SupernetEvaluator(supernet, batches, {"recall": 0.5, "copying": 0.5}, data_fingerprint="", precision=name)
        scores[name] = evaluator([supernet.main])[0].value
    assert scores["bf16"] == pytest.approx(scores["fp32"], abs=0.05)
    assert scores["bf16"] != scores["fp32"]
