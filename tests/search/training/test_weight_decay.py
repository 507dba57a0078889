"""Which parameters decay: weights, and of vectors those of which it is said."""

import argparse

import pytest
import torch
from torch import nn

from configs.local_losses import LocalLossSpec
from models import RackSpec
from models.ops.convolutions.short_convolution import ShortConvolution
from models.spec.registries import CHANNEL_MIXERS, MIXERS
from search.cli.show import run_show
from search.jobs.mad.library import train_task
from search.training.local_losses.model import LocalUnits
from search.training.optimizer import own_decay, parameter_groups

BLOCK = {"mixer": {"kind": "mamba2", "d_state": 4}, "mlp": {"kind": "swiglu", "d_ff": 16}}
KINDS = [("mixer", kind) for kind in MIXERS if kind != "stochastic"]
KINDS += [("mlp", kind) for kind in CHANNEL_MIXERS if kind != "stochastic"]


def rack(block=BLOCK, **keys):
    return RackSpec(**{"d_model": 16, "vocab_size": 8, "max_length": 8, "stacks": [{"n_blocks": 1, "block": block}], **keys})


def decays(model, **keys):
    return {name: own_decay(parameter, **keys) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("sublayer", "kind"), KINDS)
def test_of_every_part_weights_decay_and_nothing_else_does(sublayer, kind):
    model = rack({**BLOCK, sublayer: {"kind": kind}}).build(0)
    for name, decay in decays(model).items():
        owner, _, own = name.rpartition(".")
        is_weight = own == "weight" and isinstance(model.get_submodule(owner), nn.Linear | nn.Embedding | ShortConvolution)
        assert decay == (None if is_weight else 0.0), name
    assert set(decays(model, decays_all=True).values()) == {None}


def test_what_is_said_of_a_vector_holds():
    found = decays(rack(parameters={"*.A_log": {"weight_decay": 0.2}}, norm={"kind": "rmsnorm", "weight_decay": 0.3}).build(0))
    assert found["stacks.0.blocks.0.mixer.A_log"] == 0.2
    assert found["head.norm.weight"] == found["stacks.0.blocks.0.mixer_norm.weight"] == 0.3
    assert found["stacks.0.blocks.0.mixer.D"] == 0.0
    assert set(decays(rack(weight_decay=0.4).build(0)).values()) == {0.4}


def test_groups_hold_every_parameter_once():
    model = rack().build(0)
    groups = parameter_groups(model)
    assert groups.keys() == {(1.0, None), (1.0, 0.0)}
    assert sorted(name for group in groups.values() for name in group) == sorted(dict(model.named_parameters()))


@pytest.mark.parametrize(("mode", "kept"), [("mad", 0.5), ("clean", 1.0)])
def test_mode_mad_alone_decays_vectors(mode, kept):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.scale = nn.Embedding(8, 8), nn.Parameter(torch.ones(8))

        def forward(self, tokens):
            return self.embedding(tokens) * self.scale

    task = {"task": {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 16}, "n_train": 8, "n_validation": 8, "n_test": 8}
    model, keys = Model(), {"epochs": 1, "batch_size": 8, "train": {"device": "cpu"}}
    train_task(model, task, lr=1e-9, weight_decay=0.5e9, mode=mode, **keys)
    torch.testing.assert_close(model.scale.detach(), torch.full((8,), kept), rtol=1e-5, atol=1e-5)


def test_a_copied_block_trains_as_its_original_does():
    model = rack({**BLOCK, "lr_scale": 0.5, "weight_decay": 0.2}, stacks=[{"n_blocks": 2, "block": {**BLOCK, "lr_scale": 0.5}}])
    units = LocalUnits(model.build(0), LocalLossSpec(head="aux_block"), unit="block")
    assert {scale for scale, _ in parameter_groups(units.extras)} == {0.5}


@pytest.mark.parametrize(
    ("text", "rule", "decay"),
    [("job: mad\nmode: mad\n", "on every parameter", "the training's"), ("job: mad\nmode: clean\n", "none on norms", "0")],
)
def test_show_tells_the_rule_and_whom_it_touches(text, rule, decay, tmp_path, capsys):
    path = tmp_path / "suite.yaml"
    path.write_text(text + "architectures: {one: [{kind: swiglu, d_ff: 8}]}\ntasks: [compression]\n")
    run_show(argparse.Namespace(config=path, seq_len=None, parameters=True), (), None)
    out = capsys.readouterr().out
    assert rule in out
    (line,) = (line for line in out.splitlines() if "mlp_norm.weight" in line)
    assert line.split("│")[-2].strip() == decay
