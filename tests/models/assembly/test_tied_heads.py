"""A head that is tied to the embedding has no adapter, however adapters are asked for: they could not be merged."""

import pytest
import torch

from configs import ConfigError
from configs.load import validate
from models import RackSpec
from models.growth.grow import grow
from models.linears.adapters import AdaptedLinear, adapters_of, tied_linears
from search.jobs.progressive.plan import first_stage, next_stage
from search.stackwise.rack_builder import ProgressiveRackBuilder
from tests.search.growths import growth_spec

BLOCK = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 24}}
LORA = {"lora": {"rank": 2, "fit": True}}
ASKED = {
    "of the rack": LORA,
    "beside what trains": {"lora": {"rank": 2, "freeze_others": False, "freeze_base": False}},
    "by a glob": {"parameters": {"*": LORA}},
    "by the name that all outputs have": {"parameters": {"*.output": LORA}},
    "by targets": {"lora": {"rank": 2, "targets": ["*.query", "*.output"]}},
    "of every stack": {"stacks": [{"n_blocks": 2, "block": BLOCK, **LORA, "progressive_lora": {"rank": 3}}]},
    "with stored weights": {**LORA, "stacks": [{"n_blocks": 2, "block": BLOCK, "precision": "qlora"}]},
}


def tree(**keys):
    return {"vocab_size": 8, "d_model": 16, "stacks": [{"n_blocks": 2, "block": BLOCK}], "tie_embeddings": True, **keys}


def adapted(rack):
    return {name for name, part in rack.named_modules() if isinstance(part, AdaptedLinear)}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_tied_head_has_none(asked):
    tied, untied = (RackSpec(**tree(tie_embeddings=tie, **asked)).build() for tie in (True, False))
    assert "head.output" not in adapted(tied)
    assert adapted(tied) == adapted(untied) - {"head.output"}
    assert tied.head.output.weight is tied.embedding.weight
    assert tied_linears(tied) == {"head.output": "embedding.weight"}
    assert tied_linears(untied) == {}


def test_what_adapters_freeze_is_frozen_at_a_tied_head_too():
    head = {"kind": "language_model", "bias": True}
    for tie in (True, False):
        rack = RackSpec(**tree(tie_embeddings=tie, head=head, **LORA)).build()
        assert not rack.head.output.bias.requires_grad
        assert not rack.embedding.weight.requires_grad


def test_other_linears_of_a_tied_head_have_theirs():
    rack = RackSpec(**tree(max_length=6, head="autoencoder", **LORA)).build()
    assert {name for name in adapted(rack) if name.startswith("head")} == {"head.decoder.1", "head.decoder.4"}


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"head": {"kind": "language_model", **LORA}}, "head.lora"),
        ({"head": {"kind": "language_model", "parameters": {"*": LORA}}}, r'head.parameters\["\*"\]'),
        ({"parameters": {"head.output": LORA}}, r'parameters\["head.output"\].lora'),
        ({"parameters": {"head*": LORA}}, r'parameters\["head\*"\].lora'),
        ({"lora": {"targets": ["*.query", "head"]}}, r"lora.targets\[1\]"),
    ],
)
def test_adapters_of_the_tied_head_alone_are_refused_at_their_place(keys, place):
    with pytest.raises(ConfigError, match=f"rack: {place}: .*embedding"):
        validate(RackSpec, tree(**keys), "rack")
    assert RackSpec(**tree(**{**keys, "tie_embeddings": False})).build()


def test_a_head_gets_its_adapter_when_it_is_untied():
    before, after = RackSpec(**tree(**LORA)), RackSpec(**tree(**LORA, tie_embeddings=False))
    rack = before.build()
    expected = rack(torch.arange(6)[None])
    grown = grow(rack, before, after, seed=0)
    assert adapters_of(grown.head.output).keys() == {"lora"}
    torch.testing.assert_close(grown(torch.arange(6)[None]), expected)


def test_a_trunk_with_adapters_leaves_a_tied_head_alone():
    """Also where the head goes on training with the embedding, tied to it."""
    rack = {"tie_embeddings": True, **LORA}
    growth = {"trunk_strategy": "qlora", "progressive_qlora": True, "train_embedding": True, "new_stack_precision": "qlora"}
    spec = growth_spec(rack=rack, growth=growth)
    stage = first_stage(spec)
    for _ in range(2):
        stage = next_stage(spec, stage)
        assert stage.rack.tie_embeddings
        assert {"lora", "progressive"} <= set(adapters_of(stage.rack.build().blocks()[0].mixer.query))
        assert "head.output" not in adapted(stage.rack.build())


def test_a_builder_with_adapters_leaves_a_tied_head_alone():
    builder = ProgressiveRackBuilder(vocab_size=30, d_model=32, d_ff=48, n_heads=2, tie_embeddings=True)
    builder.append_stack(n_blocks=1, precision="qlora")
    builder.append_stack(n_blocks=1)
    builder.add_qlora_to_all_stacks(rank=2)
    builder.add_qlora_to_trunk(rank=2)
    rack = builder.build_rack()
    assert rack.head.output.weight is rack.embedding.weight
    assert adapted(rack)
    assert "head.output" not in adapted(rack)
