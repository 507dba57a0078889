"""What a growth's configuration refuses, each with its place; what it fills in; that it comes back as it was."""

import json
from pathlib import Path

import pytest

from configs import ConfigError, load
from configs.load import validate
from search.jobs.progressive.spec import ProgressiveSpec
from tests.search.growths import AHEAD, BLOCK, RECALL, STACK, growth_spec

ROOT = Path(__file__).parents[4]
LOOKS_AHEAD = {"n_blocks": 1, "block": AHEAD}
UNFIT = {"n_blocks": 1, "block": {"mixer": {"kind": "attention", "n_heads": 3}}}
CHOICE = {"kind": "stochastic", "main": "attention"}
SPACE, PARTLY_AHEAD = (
    {"n_blocks": 1, "block": {**BLOCK, "mixer": {**CHOICE, "mixers": {"attention": BLOCK["mixer"], "other": other["mixer"]}}}}
    for other in (BLOCK, AHEAD)
)
DENOISES = {"prepend_loss": "denoise_mse"}
VARIABLE = {"qlora_enabled": True, "qlora_strategy": "variable", "qlora_configs": {1: {"rank": 2}}}
SHIPPED = ROOT / "configs/progressive.yaml"
MLM = {"objective": "mlm"}
CASES = {
    # the task, the objective, and what they need of the rack
    "vocabulary": ({**MLM, "rack": {"vocab_size": 8}}, "rack.vocab_size: 8 is too small: with mlm there are 9 tokens"),
    "length": ({"rack": {"max_length": 8}}, "rack.max_length: 8 is too short: samples have 15 positions"),
    "head": ({"rack": {"head": {"kind": "autoencoder"}}}, "rack.head: growth has the head language_model, not autoencoder"),
    "task": ({"data": {"task": {"kind": "compression", "vocab_size": 8, "seq_len": 16}}}, "data.task: the task needs the head"),
    "option of the task": ({"data": {"task": {**RECALL, "seq_len": 1}}}, "data.task"),
    "option of the objective": ({"objective": {"kind": "mlm", "mask_ratio": 1.5}}, "objective: mask_ratio"),
    "workers": ({"workers": {"n": 9}}, "workers.n: 9 workers for the 8 rows of data.batch_size"),
    # mixers that look ahead
    "ahead": ({"block": AHEAD}, "rack.stacks[0]: the objective clm needs causal stacks"),
    "ahead, added": ({"stack": LOOKS_AHEAD}, "stack: the objective clm needs causal stacks"),
    "ahead, chosen": ({"candidates": {"a": STACK, "b": LOOKS_AHEAD}}, "candidates.b: the objective clm needs causal"),
    "ahead, in a choice": ({"stack": PARTLY_AHEAD}, "stack: the objective clm needs causal stacks"),
    # growth
    "choice": ({"block": SPACE["block"]}, "rack: stacks that are trained first have no choices"),
    "target": ({"rack": {"stacks": [STACK] * 4}}, "growth.target_stacks: 3 is below the 4 stacks"),
    "most": ({"growth": {"target_stacks": 13}}, "growth.target_stacks: 13 is more than max_stacks = 12"),
    "own most": ({"growth": {"max_stacks": 2}}, "growth.target_stacks: 3 is more than max_stacks = 2"),
    "steps": ({"growth": {"stage_steps": [1, 2, 3, 4]}}, "growth.stage_steps: 4 numbers for 3 stage(s)"),
    "steps of one": ({"growth": {"enabled": False, "stage_steps": [1, 2]}}, "growth.stage_steps: 2 numbers for 1 stage(s)"),
    "shared": ({"block": {**STACK["block"], "share": "a"}}, "rack.stacks[0]: share: 'a' would be in several stacks"),
    "shared, added": ({"stack": {"n_blocks": 2, "block": {**STACK["block"], "share": "a"}}}, "stack: share: 'a' would be in"),
    "mode": ({"training_architecture": "stackwise"}, "training_architecture: stackwise is how a whole rack trains"),
    "denoising": ({"growth": {**DENOISES, "building_mode": "prepend"}}, "growth.prepend_loss: denoise_mse needs"),
    "denoising by what moves": (
        {**MLM, "growth": {**DENOISES, "building_mode": "prepend", "trunk_strategy": "full"}},
        "growth.train_embedding: denoise_mse measures by the embedding",
    ),
    "denoising above": ({**MLM, "growth": DENOISES}, "growth.prepend_loss: denoise_mse is of a stack before"),
    "no adapters": (
        {"growth": {"trunk_strategy": "qlora", "progressive_qlora": False}},
        "growth.trunk_strategy: qlora trains the trunk's adapters, and there are none",
    ),
    "none to tune": (
        {"growth": {"joint_tuning_steps": 2, "fine_tune_mode": "adapters"}},
        "growth.fine_tune_mode: there are no adapters to tune",
    ),
    "strategy": ({"growth": {"trunk_strategy": "thawed"}}, "growth.trunk_strategy: "),
    "key": ({"growth": {"trunk_strategie": "frozen"}}, "growth.trunk_strategie: "),
    # time
    "time": ({"rack": {"time": {"kind": "learned", "n_steps": 2, "d_time": 4}}}, "rack.time: time comes from growth"),
    "time of a batch": ({"growth": {"time_interpretation": "input"}}, "growth.time_sampling: one time step for a whole batch"),
    "shared times": (
        {"growth": {"time_interpretation": "depth", "num_time_steps": 2}},
        "growth.num_time_steps: stacks share time steps: [0, 1, 1]",
    ),
    "mapping": (
        {"growth": {"time_interpretation": "depth", "stack_time_mapping": "custom", "custom_time_mapping": "cosin"}},
        "growth.stack_time_mapping: unknown time mapping 'cosin'; did you mean 'cosine'",
    ),
    "code": (
        {"growth": {"stack_time_mapping": "custom", "custom_time_mapping": "no:one"}},
        "growth.custom_time_mapping: 'no:one': a file can name no code: give the name of a file in tasks/time_mappings",
    ),
    "no mapping": ({"growth": {"stack_time_mapping": "custom"}}, "growth.custom_time_mapping: "),
    # candidates
    "both": ({"stack": STACK, "candidates": {"a": STACK, "b": STACK}}, "candidates: give candidates, or one stack, not both"),
    "one": ({"candidates": {"a": STACK}}, "candidates: "),
    "unfit": ({"stack": UNFIT}, "stack.block.mixer: n_heads = 3 must divide d_model = 16"),
    "unfit candidate": ({"candidates": {"a": STACK, "b": UNFIT}}, "candidates.b.block.mixer: n_heads = 3 must divide"),
    "candidate with a choice": ({"candidates": {"a": STACK, "b": SPACE}}, "candidates.b: a candidate has no choices itself"),
    "name": ({"candidates": {"../a": STACK, "b": STACK}}, "candidates[\"../a\"]: a candidate's name is its folder's"),
    "taken name": ({"candidates": {"tune": STACK, "b": STACK}}, "candidates.tune: a candidate's name is its folder's"),
    "rows without a number": ({"data": {"n_train": None}}, "data.n_train: a number is needed"),
    "nothing to choose": ({"choice": {"n_steps": 3}}, "choice: there is nothing to choose from"),
    "budget": (
        {"candidates": {"a": STACK, "b": STACK}, "choice": {"budget": {"attention": 1}}},
        "choice.budget: only a stack with choices",
    ),
    "chosen below": ({"stack": SPACE, "growth": {"building_mode": "prepend"}}, "growth.building_mode: candidates are ranked"),
    "chosen at once": ({"stack": SPACE, "growth": {"enabled": False}}, "growth.enabled: only a stack that a rack grows by"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_told_with_its_place(case):
    keys, text = CASES[case]
    with pytest.raises(ConfigError) as raised:
        growth_spec(**keys)
    assert f"test: {text}" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_everything_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigError) as raised:
        growth_spec(workers={"n": 9}, growth={"stage_steps": [1] * 4}, candidates={"a": UNFIT, "../b": UNFIT})
    places = [line.split(": ")[1] for line in str(raised.value).splitlines()]
    names = ["candidates.a.block.mixer", 'candidates["../b"]', 'candidates["../b"].block.mixer']
    assert sorted(places) == sorted(["workers.n", "growth.stage_steps", *names])


def test_sizes_are_what_task_and_objective_need():
    clm, mlm = growth_spec(), growth_spec(objective="mlm", block=AHEAD)
    assert (clm.rack.vocab_size, clm.rack.max_length) == (8, 15)
    assert mlm.rack.vocab_size == 9  # the mask is one more
    assert growth_spec(rack={"vocab_size": 64}).rack.vocab_size == 64


@pytest.mark.parametrize(
    ("growth", "n_stages", "steps"),
    [
        ({}, 3, [6, 6, 6]),
        ({"stage_steps": 4, "joint_tuning_steps": 2}, 4, [4, 4, 4, 2]),
        ({"stage_steps": [5, 3]}, 3, [5, 3, 3]),
        ({"enabled": False, "joint_tuning_steps": 2}, 2, [6, 2]),
        ({"target_stacks": None, "max_stacks": 2}, 2, [6, 6]),
        ({"target_stacks": 1}, 1, [6]),
    ],
)
def test_stages_and_their_steps(growth, n_stages, steps):
    spec = growth_spec(growth=growth)
    assert spec.n_stages == n_stages
    assert [spec.steps_of(index) for index in range(n_stages)] == steps


def test_a_spec_comes_back_as_it_was_and_how_it_runs_is_no_part_of_it():
    candidates = {"candidates": {"one": STACK, "two": {"n_blocks": 2, "block": BLOCK}}}
    for keys in ({}, candidates, {"growth": VARIABLE}):
        spec = growth_spec(**keys)
        again = validate(ProgressiveSpec, json.loads(json.dumps(spec.to_dict())), "again")
        assert again == spec
        assert again.fingerprint() == spec.fingerprint()
    assert growth_spec(workers={"n": 2}, checkpoint_every=3).fingerprint() == growth_spec().fingerprint()
    assert growth_spec(growth={"init": "random"}).fingerprint() != growth_spec().fingerprint()


def test_what_a_file_says_is_effective():
    masked = load(ProgressiveSpec, SHIPPED, overrides=["objective.kind=mlm", "objective.mask_ratio=0.3"])
    assert masked.make_objective().mask_ratio == 0.3
    assert masked.n_stages == 4
    times = ["growth.time_interpretation=depth", "growth.noise_direction=decreasing", "growth.time_per_stack=10"]
    assert load(ProgressiveSpec, SHIPPED, overrides=times).depth_time().table == (30, 20, 10, 0)
