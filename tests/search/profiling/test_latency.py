"""The latency table: what it was measured at, and that it is of use for that alone."""

import pytest
import torch

from configs import ConfigError
from models import RackSpec
from models.mixers.attention import Attention
from search.jobs.profile.job import measure
from search.jobs.profile.spec import ProfileSpec
from search.profiling.decoding import state_at
from search.training.devices import hardware
from tests.search.landscapes import space

CPU = torch.device("cpu")


def table(rack, **keys):
    """Timed once."""
    return measure(ProfileSpec(**{"rack": rack, "seq_len": 8, "repeats": 1, "device": "cpu", **keys}), CPU)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_a_table_is_of_use_at_its_own_length(mode):
    rack = space(2)
    measured = table(rack, mode=mode)
    outside, slots = measured.of_space(rack, 8)
    assert outside > 0
    assert [set(slot) for slot in slots] == [{"attention", "linear"}] * 2
    with pytest.raises(ConfigError, match=f"latency table: {mode} was measured at seq_len 8, but the budget's context is 9"):
        measured.of_space(rack, 9)


@pytest.mark.parametrize(("kind", "matters"), [("hyena", True), ("attention", False)])
def test_the_longest_sequence_matters_where_a_part_is_built_for_it(kind, matters):
    racks = [
        RackSpec(d_model=16, vocab_size=32, max_length=length, stacks=[{"n_blocks": 1, "block": {"mixer": kind}}])
        for length in (8, 16)
    ]
    measured = table(racks[0])
    measured.check(racks[0])
    if matters:
        with pytest.raises(ConfigError, match="latency table: measured at max_length 8, but the space has 16"):
            measured.check(racks[1])
    else:
        measured.check(racks[1])


def test_measuring_draws_nothing_from_the_generator_of_all():
    before = torch.get_rng_state()
    table(space(1))
    assert torch.equal(before, torch.get_rng_state())


def test_the_hardware_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "a GPU")
    assert hardware() == hardware(torch.device("cuda")) == "a GPU"
    assert hardware(CPU) != "a GPU"
    assert table(space(1)).hardware != "a GPU"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cache_is_of_the_precision_that_the_table_says(precision):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        mixer = Attention(16, n_heads=2)
        keys, values, *_ = state_at(mixer, mixer.step, 1, 16, 5)
    assert keys.shape == values.shape == (1, 2, 5, 8)
    assert {keys.dtype, values.dtype} == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
