"""The stages of a growth as specs: which stacks stand where, what trains in each, what the joint stage lets go."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import configs
from configs.load import load
from models.assembly.parameter_settings import ParameterSettings
from models.growth.edit_spec import stack_uids, without_stack
from search.cli.show_stages import print_stages
from search.jobs.progressive.plan import first_stage, next_stage
from search.jobs.progressive.spec import ProgressiveSpec
from tests.search.growths import BLOCK, STACK, growth_spec

SHIPPED = Path(configs.__file__).parent


def stages(spec):
    """All of them, one grown from the other."""
    found = [first_stage(spec)]
    while len(found) < spec.n_stages:
        found.append(next_stage(spec, found[-1]))
    return found


def trained(stage):
    """The parts of which something trains: `embedding`, `head`, or a stack by uid with what of it: base or adapters."""
    found = set()
    uids = stack_uids(stage.rack)
    for name, parameter in stage.rack.build().named_parameters():
        if parameter.requires_grad:
            part, _, rest = name.partition(".")
            if part == "stacks":
                part = f"{uids[int(rest.partition('.')[0])]} {'adapters' if '.adapters.' in name else 'base'}"
            found.add(part)
    return found


def test_stacks_keep_their_uid_wherever_they_stand():
    above, below = (stages(growth_spec(growth={"building_mode": mode})) for mode in ("append", "prepend"))
    assert [stack_uids(stage.rack) for stage in above] == [(0,), (0, 1), (0, 1, 2)]
    assert [stack_uids(stage.rack) for stage in below] == [(0,), (1, 0), (2, 1, 0)]
    assert [stage.position for stage in below] == [0, 0, 0]
    assert [(stage.kind, stage.uid, stage.n_steps) for stage in above] == [("first", 0, 6), ("grow", 1, 6), ("grow", 2, 6)]
    for first, second in ((above[0], above[1]), (below[1], below[2])):
        assert second.before == first.rack


def test_stacks_that_are_there_count_and_get_uids_anew():
    """Also those of a rack that was saved with others."""
    rack = {"stacks": [{**STACK, "uid": 4}, {**STACK, "uid": 1}], "next_uid": 9}
    found = stages(growth_spec(rack=rack))
    assert [stack_uids(stage.rack) for stage in found] == [(0, 1), (0, 1, 2)]
    assert [stage.uid for stage in found] == [1, 2]


def test_a_stage_checks_its_rack_once(monkeypatch):
    """However many stacks become its trunk: each check builds the whole rack, without memory."""
    spec, checked = growth_spec(growth={"target_stacks": 5, "trunk_strategy": "qlora", "joint_tuning_steps": 2}), []
    monkeypatch.setattr(ParameterSettings, "check", lambda settings, _: checked.append(len(settings.rack.stacks)))
    planned = stages(spec)
    assert checked == [len(stage.rack.stacks) for stage in planned[1:]]


def test_without_growth_all_stacks_are_there_at_once():
    (stage,) = stages(growth_spec(growth={"enabled": False}))
    assert stack_uids(stage.rack) == (0, 1, 2)
    assert trained(stage) == {"embedding", "head", "0 base", "1 base", "2 base"}


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ({}, {"head", "2 base"}),
        ({"train_head": False}, {"2 base"}),
        ({"train_embedding": True}, {"embedding", "head", "2 base"}),
        ({"trunk_strategy": "full"}, {"embedding", "head", "0 base", "1 base", "2 base"}),
        ({"trunk_strategy": "full", "train_embedding": False}, {"head", "0 base", "1 base", "2 base"}),
        ({"trunk_strategy": "qlora"}, {"head", "0 adapters", "1 adapters", "2 base"}),
        ({"trunk_strategy": "qlora", "qlora_trunk_window": 1}, {"head", "1 adapters", "2 base"}),
        ({"trunk_strategy": "qlora", "qlora_trunk_window": 1, "building_mode": "prepend"}, {"head", "1 adapters", "2 base"}),
        ({"trunk_strategy": "qlora", "new_stack_precision": "qlora"}, {"head", "0 adapters", "1 adapters", "2 adapters"}),
        ({"qlora_enabled": True, "train_stack_lora_with_base": True}, {"head", "2 base", "2 adapters"}),
    ],
)
def test_what_trains_beside_a_trunk(growth, expected):
    spec = growth_spec(growth={"qlora_rank": 2, "progressive_qlora_rank": 2, **growth})
    assert trained(stages(spec)[-1]) == expected


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ({}, {"embedding", "head", "0 base", "1 base", "2 base"}),
        ({"fine_tune_mode": "head"}, {"head"}),
        # stored weights stay as they are: adapters learn there, also those that were at rest
        ({"trunk_strategy": "qlora"}, {"embedding", "head", "0 adapters", "1 adapters", "2 base"}),
        ({"trunk_strategy": "qlora", "qlora_trunk_window": 1}, {"embedding", "head", "0 adapters", "1 adapters", "2 base"}),
        (
            {"new_stack_precision": "nvfp4", "qlora_enabled": True},
            {"embedding", "head", "0 adapters", "1 adapters", "2 base"},
        ),
        # the newest stack has no adapters, and is not to train for that
        ({"trunk_strategy": "qlora", "fine_tune_mode": "adapters"}, {"0 adapters", "1 adapters"}),
        ({"trunk_strategy": "qlora", "fine_tune_mode": "head"}, {"head"}),
        (
            {"qlora_enabled": True, "fine_tune_mode": "adapters"},
            {"0 adapters", "1 adapters", "2 adapters"},
        ),
        (
            {"qlora_enabled": True, "train_stack_lora_with_base": True, "fine_tune_mode": "adapters"},
            {"0 adapters", "1 adapters", "2 adapters"},
        ),
    ],
)
def test_what_trains_in_the_joint_stage(growth, expected):
    spec = growth_spec(growth={"joint_tuning_steps": 2, "qlora_rank": 2, "progressive_qlora_rank": 2, **growth})
    last = stages(spec)[-1]
    assert (last.kind, last.n_steps, len(last.rack.stacks)) == ("joint", 2, 3)
    assert trained(last) == expected


def test_a_tied_table_that_stands_still_lets_go_of_the_head():
    first, second, _ = stages(growth_spec(rack={"tie_embeddings": True}))
    assert first.rack.tie_embeddings
    assert not second.rack.tie_embeddings
    assert "head" in trained(second)
    _, kept, _ = stages(growth_spec(rack={"tie_embeddings": True}, growth={"trunk_strategy": "full"}))
    assert kept.rack.tie_embeddings
    _, still, _ = stages(growth_spec(rack={"tie_embeddings": True}, growth={"train_head": False}))
    assert still.rack.tie_embeddings
    assert trained(still) == {"1 base"}


def test_the_rate_of_a_trunk_that_trains_on_is_its_own_times_the_trunks():
    """However long it has been there."""
    spec = growth_spec(
        rack={"stacks": [{**STACK, "lr_scale": 0.5}]}, stack=STACK, growth={"trunk_strategy": "full", "trunk_lr_scale": 0.1}
    )
    scales = [[stack.lr_scale for stack in stage.rack.stacks] for stage in stages(spec)]
    assert scales == [[0.5], [0.05, 1.0], [0.05, 0.1, 1.0]]


def test_what_is_added_is_what_is_said_or_the_last_stack_again():
    wide = {"n_blocks": 2, "block": BLOCK}
    assert [len(stack.expanded()) for stack in stages(growth_spec(stack=wide))[-1].rack.stacks] == [1, 2, 2]
    assert [len(stack.expanded()) for stack in stages(growth_spec(rack={"stacks": [STACK, wide]}))[-1].rack.stacks] == [1, 2, 2]


def test_a_rack_is_told_the_time_from_the_first_stage_on():
    growth = {"time_interpretation": "input", "time_sampling": "sample", "time_embedding_dim": 8, "num_time_steps": 5}
    first, second, _ = stages(growth_spec(growth=growth))
    assert (first.rack.time.n_steps, first.rack.time.d_time) == (5, 8)
    assert trained(first) == {"embedding", "head", "time_embedding", "0 base"}
    assert trained(second) == {"head", "1 base"}


@pytest.mark.parametrize("growth", [{"trunk_strategy": "qlora"}, {"new_stack_precision": "fp8", "building_mode": "prepend"}])
def test_every_stage_is_a_model_of_its_own(growth):
    for stage in stages(growth_spec(growth={"progressive_qlora_rank": 2, "joint_tuning_steps": 1, **growth})):
        rack = stage.rack.build()
        assert torch.isfinite(rack(torch.zeros(1, 4, dtype=torch.long))).all()


def test_a_new_stack_gets_the_uid_that_no_other_had():
    """After the newest one has been taken away; what is counted are those that are there."""
    spec = growth_spec(growth={"target_stacks": 4})
    last = stages(spec)[2]
    shorter = replace(last, rack=without_stack(last.rack, 2), initial={uid: last.initial[uid] for uid in (0, 1)}, uid=1)
    stage = next_stage(spec, shorter)
    assert (stage.uid, stage.position, stage.created) == (3, 2, 2)
    assert stack_uids(stage.rack) == tuple(stage.initial) == (0, 1, 3)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("progressive*.yaml")), ids=lambda path: path.stem)
def test_the_stages_of_every_shipped_growth_are_shown(path):
    spec, console = load(ProgressiveSpec, path), Console(width=200, record=True, file=io.StringIO())
    print_stages(console, spec)
    shown = [line for line in console.export_text().splitlines() if line.startswith("│")]
    assert len(shown) == spec.n_stages
