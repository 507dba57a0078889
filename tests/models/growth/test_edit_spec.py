"""Growth of specs: stacks by uid, wherever they come to stand, and what is said of them."""

import pytest

from configs import ConfigError
from models import RackSpec, StackSpec
from models.growth.edit_spec import (
    next_uid,
    stack_position,
    stack_uids,
    with_stack,
    with_stack_replaced,
    with_stacks_fused,
    without_stack,
)
from models.spec.parameters import LoraSpec, learning_rate_scales
from tests.models.edits import with_stack_fields

ATTENTION = {"kind": "attention", "n_heads": 2}
MLP = {"kind": "mlp", "d_ff": 8}


def stack(d_ff=8, n_blocks=1, **fields):
    return {"n_blocks": n_blocks, "block": {"mixer": ATTENTION, "mlp": {**MLP, "d_ff": d_ff}}, **fields}


def rack(*stacks, **keys):
    return RackSpec(**{"vocab_size": 8, "d_model": 16, "stacks": list(stacks) or [stack(8), stack(9)], **keys})


def widths(spec):
    """What tells the stacks of these tests apart, by uid."""
    return {uid: [block.mlp.d_ff for block in each.expanded()] for uid, each in zip(stack_uids(spec), spec.stacks, strict=True)}


NEW = StackSpec(**stack(10))
NUMBERED = LoraSpec(targets=("blocks.0.mlp",))


def test_a_stack_that_says_no_uid_goes_by_its_position():
    assert stack_uids(rack()) == (0, 1)
    assert stack_uids(rack(stack(uid=3), stack())) == (3, 1)


@pytest.mark.parametrize(("position", "expected"), [(0, (2, 0, 1)), (1, (0, 2, 1)), (2, (0, 1, 2))])
def test_a_new_stack_gets_the_next_uid_wherever_it_stands(position, expected):
    grown = with_stack(rack(), NEW, position=position)
    assert stack_uids(grown) == expected
    assert [each.uid for each in grown.stacks] == list(expected), "all are written out: positions have moved"
    assert widths(grown) == {0: [8], 1: [9], 2: [10]}
    assert stack_position(grown, 2) == position


def test_what_has_gone_gives_its_uid_to_no_other():
    gone = without_stack(rack(), 1)
    assert stack_uids(gone) == (0,)
    assert gone.next_uid == 2
    again = with_stack(gone, NEW, position=1)
    assert stack_uids(again) == (0, 2)
    assert again.next_uid is None, "it follows from the stacks again"
    assert widths(with_stack_replaced(rack(), 1, NEW)) == {0: [8], 2: [10]}
    assert stack_uids(without_stack(with_stack_replaced(rack(), 1, NEW), 0)) == (2,)


def test_a_stack_that_is_a_copy_of_another_is_another():
    grown = with_stack(rack(stack(uid=4)), RackSpec(**rack(stack(uid=4)).to_dict()).stacks[0], position=1)
    assert stack_uids(grown) == (4, 5)


def test_neighbours_become_one_stack_of_the_same_blocks():
    spec = with_stack(rack(stack(8, 2), stack(9), lr_scale=0.5), NEW, position=2)
    fused = with_stacks_fused(spec, (0, 1))
    assert widths(fused) == {0: [8, 8, 9], 2: [10]}
    assert with_stacks_fused(fused, (0, 2)).next_uid == 3
    names = [name.partition("blocks")[2] for name, _ in spec.build(1).named_parameters() if "stacks.1" in name]
    assert all(f"stacks.0.blocks.2{name[2:]}" in dict(fused.build(1).named_parameters()) for name in names)


def test_what_the_rack_says_of_a_stack_goes_with_it():
    """By name, as that stands in the rack: after a prepend, `stacks.0` is another one."""
    said = {"stacks.0.*": {"lr_scale": 0}, "stacks.1.blocks.0.mlp.up": {"lr_scale": 0.5}}
    spec = rack(parameters=said)
    expected = learning_rate_scales(spec.build())
    first = with_stack(spec, NEW, position=0)
    found = learning_rate_scales(first.build())
    assert all(found[name.replace("stacks.1", "stacks.2").replace("stacks.0", "stacks.1")] == expected[name] for name in expected)
    assert {scale for name, scale in found.items() if name.startswith("stacks.0")} == {1.0}
    left = learning_rate_scales(without_stack(first, 0).build())
    assert left["stacks.1.blocks.0.mlp.up.weight"] == 0.5
    assert sorted(set(left.values())) == [0.5, 1.0]
    fused = learning_rate_scales(with_stacks_fused(spec, (0, 1)).build())
    assert fused["stacks.0.blocks.1.mlp.up.weight"] == 0.5
    assert fused["stacks.0.blocks.0.mlp.up.weight"] == 0
    assert fused["stacks.0.blocks.1.mlp.down.weight"] == 1
    assert list(with_stack(rack(parameters={"*.mlp.*": {"lr_scale": 0}}), NEW, position=0).parameters) == ["*.mlp.*"]


def test_a_rack_that_cannot_be_is_told_in_our_words():
    with pytest.raises(ConfigError, match="rack: "):
        with_stack(rack(), StackSpec(n_blocks=1, block={"mixer": {"kind": "attention", "n_heads": 3}}), position=0)


def test_the_next_uid_is_known_before():
    for spec in (rack(), rack(next_uid=7), without_stack(rack(), 1)):
        assert stack_uids(with_stack(spec, NEW, position=0))[0] == next_uid(spec)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda spec: with_stack(spec, NEW, position=3), "position = 3 must be from 0 to 2"),
        (lambda spec: without_stack(spec, 5), "no stack has the uid 5: there are 0, 1"),
        (lambda spec: without_stack(without_stack(spec, 0), 1), "stack 1 is the only one"),
        (lambda spec: with_stack_fields(spec, 0, precision="int3"), "'full', 'half', 'bfloat16', 'fp8', 'nvfp4' or 'qlora'"),
        (lambda spec: with_stack_fields(spec, 0, stored=True), "precision 'full' is not stored: choose one of half, "),
        (lambda spec: with_stacks_fused(spec, (1, 0)), r"neighbours, lowest first: \[0, 1\]"),
        (lambda spec: with_stacks_fused(spec, (0,)), "two or more neighbours"),
        (lambda spec: with_stacks_fused(with_stack_fields(spec, 1, lr_scale=0.5), (0, 1)), "0 and 1 differ in lr_scale"),
        (
            lambda spec: with_stacks_fused(
                with_stack(without_stack(spec, 0), StackSpec(**stack(parameters={"blocks.0.mlp": {"lr_scale": 0}})), position=1),
                (1, 2),
            ),
            "1 and 2 differ in parameters",
        ),
        (
            lambda spec: with_stacks_fused(
                with_stack_fields(with_stack_fields(spec, 0, lora=NUMBERED), 1, lora=NUMBERED), (0, 1)
            ),
            "stack 0 says something of blocks by their number",
        ),
    ],
)
def test_what_cannot_be_is_told(change, text):
    with pytest.raises(ValueError, match=text):
        change(rack())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"stacks": [stack(), stack(uid=0)]}, r"stacks\[0\] has the uid 0 already"),
        ({"next_uid": 1}, r"next_uid\s+1 must be above the uids that are there, up to 1"),
    ],
)
def test_uids_that_contradict_each_other_are_refused(keys, text):
    with pytest.raises(ValueError, match=text):
        rack(**keys) if "stacks" not in keys else rack(*keys["stacks"])


def test_fields_of_growth_are_saved():
    said = rack(
        stack(uid=3, precision="qlora", progressive_lora={"rank": 4, "trains": False, "targets": ["*.query"], "fit": True}),
        time={"n_steps": 4, "d_time": 6},
        next_uid=9,
    )
    assert RackSpec(**said.to_dict()) == said
    assert said.stacks[0].stored, "always, of qlora"


def by_uid(spec):
    """What trains, adapters included, by the uid of its stack."""
    uids, named = stack_uids(spec), spec.build().named_parameters()
    return {
        (uids[int(name.split(".")[1])], name.partition("blocks")[2]): parameter.requires_grad
        for name, parameter in named
        if name.startswith("stacks.")
    }


@pytest.mark.parametrize("is_by_glob", [False, True])
@pytest.mark.parametrize("freeze_others", [None, False])
def test_adapters_that_the_rack_puts_on_a_stack_go_with_it(is_by_glob, freeze_others):
    lora = {"rank": 2, "targets": ["stacks.1.*.up"], "freeze_others": freeze_others}
    spec = rack(**({"parameters": {"*.mlp": {"lora": lora}}} if is_by_glob else {"lora": lora}))
    expected = by_uid(spec)
    adapted = {key for key in expected if "adapters" in key[1]}
    assert {uid for uid, _ in adapted} == {1}
    first = with_stack(spec, NEW, position=0)
    for grown in (first, without_stack(first, 2), without_stack(with_stack(spec, NEW, position=1), 0)):
        found = by_uid(grown)
        assert {key for key in found if "adapters" in key[1]} == adapted
        assert {key: found[key] for key in found if key[0] != 2} == {key: expected[key] for key in expected if key in found}
    fused = by_uid(with_stacks_fused(spec, (0, 1)))
    assert {name.split(".")[1] for _, name in fused if "adapters" in name} == {"1"}
    gone = by_uid(without_stack(spec, 1))
    assert gone == {key: trains for key, trains in expected.items() if key[0] == 0}
    assert without_stack(rack(lora={"targets": ["*.up"]}), 1).lora.targets == ("*.up",)
