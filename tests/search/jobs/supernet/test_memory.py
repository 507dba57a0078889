"""The forecast of what a training holds: that of tensors with memory, byte by byte; and what the process tells of itself."""

import signal

import pytest
import torch

from models import CHANNEL_MIXERS, MIXERS
from models.rack.choice import STOCHASTIC
from search.evaluation.memory_count import peak_bytes
from search.jobs.supernet import outputs
from search.jobs.supernet.memory import forecast
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.step import SupernetStep
from search.jobs.supernet.weights import load_supernet
from search.runs.interruption import handlers_kept
from search.training.memory import PeakMemory, give_back
from tests.search.supernets import CPU, Steps, supernet_spec, train_into

TEACHER = {"source": "main", "weight": 0.5}
BLOCK = {"mixer": {"kind": "gated_delta_net", "n_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 24}}
CASES = {
    "supernet": {},
    "bf16": {"train": {"device": "cpu", "precision": "bf16"}},
    "micro-batches": {"accumulate": 3},
    "placements": {"placements_per_step": 2},
    "taught": {"teacher": TEACHER},
    "hidden states": {"teacher": {**TEACHER, "hidden_weight": 1.0}},
    "fixed": {"block": BLOCK},
    "some": {"block": BLOCK, "trains": ("*.mixer.*",)},
    "adapters": {"block": {**BLOCK, "lora": {"rank": 2}}},
    "anew": {"block": BLOCK, "gradient_checkpointing": True},
}


def held(spec):
    """What a step holds on tensors with memory, and what the optimizer keeps."""
    steps = Steps(spec)
    for part in (spec.trains or ()) and steps.model.rack.named_parameters():
        part[1].requires_grad = ".mixer." in part[0]
    steps.model.rack.set_checkpointing(enabled=spec.gradient_checkpointing)
    steps.model.train()
    steps.backward()  # whatever is made once
    steps.optimizer.step()
    steps.optimizer.zero_grad()
    step_bytes = peak_bytes(steps.backward)
    moments = sum(each.nbytes for state in steps.optimizer.state.values() for name, each in state.items() if name != "step")
    return step_bytes, moments


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_tensors_with_memory_take(case):
    spec = supernet_spec(**CASES[case])
    expected, found = held(spec), forecast(spec)
    assert found.step == pytest.approx(expected[0], rel=0.05)
    assert found.weights == sum(each.nbytes for each in Steps(spec).model.parameters())
    if not spec.rack.slots():  # of a space, what a step has not drawn has no moments yet
        assert found.moments == expected[1]


@pytest.mark.parametrize(("part", "kind"), [*(("mixer", kind) for kind in MIXERS), *(("mlp", kind) for kind in CHANNEL_MIXERS)])
def test_every_part_can_be_told_of(part, kind):
    if kind == STOCHASTIC:
        pytest.skip("is a choice of parts")
    heads = {"n_heads": 2} if part == "mixer" and "n_heads" in MIXERS.spec_of(kind).model_fields else {}
    assert forecast(supernet_spec(block={**BLOCK, part: {"kind": kind, **heads}})).step > 0


def test_for_a_gpu_it_counts_the_logits_that_are_held_there(monkeypatch):
    here = forecast(supernet_spec()).step
    monkeypatch.setitem(outputs.LOGIT_BYTES, "cuda", 1)
    assert forecast(supernet_spec()).step == here
    monkeypatch.setattr("search.jobs.supernet.step.resolve_device", lambda _: torch.device("cuda"))
    in_pieces = forecast(supernet_spec()).step
    monkeypatch.setitem(outputs.LOGIT_BYTES, "cuda", 2**20)
    assert in_pieces != forecast(supernet_spec()).step == here


def test_an_interruption_waits_while_compiled_code_calls_python(monkeypatch):
    reached = []

    def step(*_, **__):
        signal.raise_signal(signal.SIGINT)
        reached.append("the end")

    monkeypatch.setattr(SupernetStep, "backward", step)
    with handlers_kept():  # whatever another test has left
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            forecast(supernet_spec())
    assert reached == ["the end"]


def test_less_is_needed_the_less_is_trained_and_kept():
    wide = {"rack": {"d_model": 64}}
    whole, some, lora, anew, kept, running = (
        forecast(supernet_spec(**wide, **keys))
        for keys in (
            CASES["fixed"],
            CASES["some"],
            CASES["adapters"],
            CASES["anew"],
            {"teacher": {"source": "a", "keep": 2}},
            {"teacher": {"source": "a"}},
        )
    )
    assert whole.moments > some.moments > lora.moments > 0
    assert whole.total > some.total > lora.total
    assert anew.step < 0.7 * whole.step
    assert kept.step <= running.step
    assert forecast(supernet_spec(), supernet_spec().rack).teacher == forecast(supernet_spec()).weights
    assert "weights 0.00 GiB" in whole.text()


def test_a_model_of_any_size_is_told_of_without_memory():
    block = {"mixer": {"kind": "attention", "n_heads": 64}, "mlp": {"kind": "swiglu", "d_ff": 28672}}
    stack = {"n_blocks": 8, "block": block}
    data = {"tasks": {"recall": {"task": {"kind": "in_context_recall", "vocab_size": 16, "seq_len": 64}}}, "batch_size": 4}
    spec = SupernetSpec(rack={"d_model": 8192, "stacks": [stack]}, data=data, n_steps=1, trains=("*.mixer.*",))
    peak = PeakMemory(CPU)
    before = peak.bytes()
    assert forecast(spec).weights > 25e9
    if before is not None:
        assert peak.bytes() - before < 1e9


def test_blocks_may_be_computed_anew_for_the_same_numbers(tmp_path):
    keys = {"n_steps": 4, "block": {**BLOCK, "dropout": 0.1}}
    found = []
    for enabled in (False, True):
        train_into(tmp_path / str(enabled), supernet_spec(gradient_checkpointing=enabled, **keys))
        found.append(load_supernet(tmp_path / str(enabled)).state_dict())
    for name, plain in found[0].items():
        torch.testing.assert_close(found[1][name], plain, rtol=0, atol=0)
    assert supernet_spec(gradient_checkpointing=True, **keys).fingerprint() == supernet_spec(**keys).fingerprint()  # no other run


def test_the_process_tells_what_it_has_held(tmp_path):
    large = torch.ones(2**26)  # 256 MiB
    del large
    give_back()
    peak = PeakMemory(CPU)
    if (before := peak.bytes()) is None:
        pytest.skip("only Linux tells it")
    large = torch.ones(2**25)
    assert 100 * 2**20 < peak.bytes() - before < 200 * 2**20
    del large
    assert train_into(tmp_path, supernet_spec(n_steps=1))["peak_bytes"] > 2**20
