"""What a supernet's spec fills in, refuses and keeps apart."""

import pytest
from pydantic import ValidationError

from configs import ConfigError
from configs.load import validate
from search.jobs.supernet.spec import SupernetSpec
from tests.search.supernets import COPYING, RECALL, supernet_spec


def test_sizes_and_sampler_are_filled_in():
    spec = supernet_spec()
    assert (spec.rack.vocab_size, spec.rack.max_length) == (8, 24)
    assert spec.sampler.kind == "balanced"
    assert supernet_spec(rack={"vocab_size": 100, "max_length": 64}).rack.vocab_size == 100
    assert supernet_spec(teacher="main").teacher.source == "main"
    assert SupernetSpec(**spec.to_dict()) == spec


def test_how_a_run_is_run_is_no_part_of_its_fingerprint():
    how = {"checkpoint_every": 7, "debug": True, "workers": {"n": 2}, "parallel": "fsdp"}
    assert supernet_spec(**how).fingerprint() == supernet_spec().fingerprint()
    assert supernet_spec(seed=1).fingerprint() != supernet_spec().fingerprint()


def problems(**keys):
    tree = {**supernet_spec().to_dict(), **keys}
    with pytest.raises(ConfigError) as caught:
        validate(SupernetSpec, tree, "file.yaml")
    return str(caught.value).splitlines()


def test_problems_are_told_at_their_paths_and_all_at_once():
    rack = supernet_spec().rack
    placed = {**rack.place("all:gdn").to_dict(), "vocab_size": 3, "max_length": 20, "head": {"kind": "autoencoder", "bias": True}}
    found = problems(rack=placed, sampler="uniform", placements_per_step=2, teacher="main", accumulate=7, workers={"n": 2})
    assert found == [
        "file.yaml: rack.vocab_size: 3 is too small: 'recall' has 8 tokens",
        "file.yaml: rack.vocab_size: 3 is too small: 'copying' has 8 tokens",
        "file.yaml: rack.max_length: 20 is too short: 'copying' has 24 positions",
        "file.yaml: rack.head: the tasks need the head language_model, not autoencoder",
        "file.yaml: accumulate: 7 micro-batches of 6 row(s) a worker",
        "file.yaml: sampler: the rack has no stochastic part, so there is nothing to draw",
        "file.yaml: placements_per_step: the rack has no stochastic part, so there is nothing to draw",
        "file.yaml: teacher.source: the rack has no stochastic part, so main is itself; give the folder of a run",
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"workers": {"n": 13}}, "workers.n: 13 workers for the 12 rows of data.batch_size"),
        ({"teacher": {"source": "main", "weight": 0}}, "teacher: weight and hidden_weight are both 0"),
        ({"sampler": {"kind": "fixed", "placements": {"all:gpt": 1.0}}}, "sampler: placement 'all:gpt': no slot has 'gpt'"),
        ({"sampler": "balansed"}, "sampler: unknown sampler 'balansed'; did you mean 'balanced'?"),
        ({"n_step": 4}, "n_step: unknown key 'n_step'; did you mean 'n_steps'?"),
    ],
)
def test_refusals(keys, expected):
    assert any(expected in line for line in problems(**keys))


def test_wrong_data_is_told_without_follow_ups():
    with pytest.raises(ValidationError) as caught:
        supernet_spec(data={"tasks": {"recall": {"task": {**RECALL, "vocab_size": 1}}}, "batch_size": 4})
    assert all(line["loc"][0] == "data" for line in caught.value.errors())


def test_a_placement_is_retrained_from_scratch():
    spec = supernet_spec(teacher="main", placements_per_step=2, seed=3)
    alone = spec.placed("gdn, attention")
    assert alone.rack == spec.rack.place("gdn, attention")
    assert (alone.sampler, alone.teacher, alone.placements_per_step) == (None, None, 1)
    assert (alone.data, alone.n_steps, alone.seed) == (spec.data, spec.n_steps, spec.seed)
    assert alone.fingerprint() != spec.placed("attention, gdn").fingerprint()


def test_tasks_with_other_sizes_share_a_rack():
    data = {"tasks": {"a": {"task": {**RECALL, "vocab_size": 32}}, "b": {"task": COPYING}}, "batch_size": 4}
    assert supernet_spec(data=data).rack.vocab_size == 32
