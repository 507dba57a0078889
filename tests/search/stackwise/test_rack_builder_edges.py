"""What a builder is given that does not fit: it is told in its own words, and the rack stays what it was."""

import pytest
import torch
from safetensors.torch import save_file

from configs import ConfigError
from models.architecture import Block, Stack
from search.stackwise.rack_builder import ProgressiveRackBuilder
from search.training import checkpoint

SIZES = {"vocab_size": 30, "d_model": 32, "d_ff": 48, "n_heads": 2}
BLOCK = {name: SIZES[name] for name in ("d_model", "d_ff", "n_heads")}
TOKENS = torch.arange(24).view(2, 12) * 5 % 30


def builder_of(n_stacks=2):
    builder = ProgressiveRackBuilder(**SIZES)
    for _ in range(n_stacks):
        builder.append_stack(n_blocks=1)
    return builder


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"building_mode": "apend"}, "unknown building_mode 'apend'; did you mean 'append'. Known: append, prepend"),
        ({"building_mode": ""}, "unknown building_mode ''"),
        ({"default_precision": "fulll"}, "unknown default_precision 'fulll'; did you mean 'full'"),
    ],
)
def test_words_that_do_not_exist(said, message):
    with pytest.raises(ConfigError, match=message):
        ProgressiveRackBuilder(**SIZES, **said)


def reshaped():
    stack = Stack([Block(**BLOCK)])
    stack.blocks[0].mlp.up.weight = torch.nn.Parameter(torch.zeros(3, 32))
    return stack


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stack([Block(d_model=64, n_heads=2)]), "the stack has d_model = 64, but the rack has d_model = 32"),
        (lambda: Stack([Block(d_model=96, n_heads=3)]), "the stack has d_model = 96, but the rack has d_model = 32"),
        (reshaped, r"blocks\.0\.mlp\.up\.weight differ"),
    ],
)
def test_a_stack_that_does_not_fit_is_refused_and_nothing_changes(make, message):
    builder = builder_of()
    spec, rack, logits = builder.spec, builder.build_rack(), builder.build_rack()(TOKENS)
    with pytest.raises(ValueError, match=message):
        builder.replace_stack(0, make())
    assert builder.build_rack() is rack
    assert (builder.spec, [stack.uid for stack in rack.stacks]) == (spec, [0, 1])
    assert torch.equal(rack(TOKENS), logits)


def test_a_frozen_stack_comes_frozen_and_thaws():
    builder, stack = builder_of(), Stack([Block(**BLOCK, freeze_up_proj=True)], freeze_blocks=True)
    placed = builder.replace_stack(0, stack)
    assert not [name for name, parameter in placed.named_parameters() if parameter.requires_grad]
    builder.unfreeze_trunk([0])
    frozen = [name for name, parameter in builder.at(0).named_parameters() if not parameter.requires_grad]
    assert frozen == ["blocks.0.mlp.up.weight"]
    assert torch.equal(builder.at(0).blocks[0].mlp.up.weight, stack.blocks[0].mlp.up.weight)


def test_a_file_that_no_builder_has_saved(tmp_path):
    foreign, damaged = tmp_path / "foreign.safetensors", tmp_path / "damaged.safetensors"
    checkpoint.save(foreign, {"weight": torch.zeros(2)}, {"seed": 0})
    damaged.write_bytes(b"nothing")
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(2)}, plain)
    expected = {
        tmp_path / "nowhere.safetensors": "there is no such file",
        foreign: "it lacks adapters, building_mode",
        damaged: "it is damaged, or of something else",
        plain: "it is damaged, or of something else",
    }
    for path, message in expected.items():
        with pytest.raises(ConfigError, match=f"{path.name} is no file that a builder has saved: {message}"):
            ProgressiveRackBuilder.load(path)
