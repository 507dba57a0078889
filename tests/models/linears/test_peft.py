"""Adapters as PEFT reads them: names and shapes of its layout, and the same function by its formula."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from models import RackSpec
from models.linears.adapters import AdaptedLinear, Adapter, is_adapter, replace
from models.linears.convert import with_adapters
from models.linears.peft import export_adapters

TOKENS = torch.arange(20).view(2, 10) % 8
BLOCK = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 24}}
LORA = {"rank": 4, "alpha": 6, "fit": True, "dropout": 0.1}


def grown(**stack):
    tree = {"vocab_size": 8, "d_model": 16, "stacks": [{"n_blocks": 2, "block": BLOCK, "uid": 0}, stack | {"block": BLOCK}]}
    rack = RackSpec(**tree).build(seed=1).eval()
    for index, (name, parameter) in enumerate(rack.named_parameters()):
        if name.endswith(".up") and is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return rack


STACKS = {
    "both": {"n_blocks": 1, "lora": LORA, "progressive_lora": {"rank": 2, "alpha": 3}},
    "over half of the narrow sides": {"n_blocks": 2, "lora": {**LORA, "rank": 16}},
    "by the root of the rank": {"n_blocks": 1, "lora": {**LORA, "rslora": True, "targets": ["*.query", "*.mlp"]}},
    "stored": {"n_blocks": 1, "precision": "qlora", "lora": LORA, "progressive_lora": {"rank": 3}},
}


def pattern(config, name, key, default):
    """The first pattern that matches the name of a module, as PEFT looks it up."""
    found = (value for regex, value in config[key].items() if re.match(rf"(.*\.)?({regex})$", name))
    return next(found, config[default])


def read(folder):
    """The change that a folder makes to each linear's weight, by PEFT's formula."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    changes = {}
    for name in config["target_modules"]:
        a, b = (tensors.pop(f"base_model.model.{name}.{matrix}.weight") for matrix in ("lora_A", "lora_B"))
        rank = pattern(config, name, "rank_pattern", "r")
        assert a.shape[0] == b.shape[1] == rank
        changes[name] = pattern(config, name, "alpha_pattern", "lora_alpha") / rank * b @ a
    assert not tensors
    return changes, config


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_the_weights_with_all_changes_are_the_same_function(tmp_path, stack):
    rack = grown(**stack)
    names = [name for name, field in (("lora", "lora"), ("progressive", "progressive_lora")) if field in stack]
    changes = [read(export_adapters(rack, tmp_path / name, name))[0] for name in names]
    adapted = {name: part for name, part in rack.named_modules() if isinstance(part, AdaptedLinear)}
    assert set().union(*changes) == set(adapted)
    for name, linear in adapted.items():
        x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(0))
        weight = linear.weight + sum(change[name] for change in changes if name in change)
        torch.testing.assert_close(F.linear(x, weight, linear.bias), linear(x))
        assert not torch.allclose(F.linear(x, linear.weight, linear.bias), linear(x), atol=1e-3)


def test_each_adapter_is_a_folder_of_its_own(tmp_path):
    rack = grown(n_blocks=1, lora=LORA, progressive_lora={"rank": 2, "alpha": 3})
    changes, config = read(export_adapters(rack, tmp_path / "own", base_model="a/model"))
    assert {key: config[key] for key in ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias")} == {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "use_rslora": False,
        "bias": "none",
    }
    assert config["base_model_name_or_path"] == "a/model"
    parts = ("mixer.query", "mixer.key", "mixer.value", "mixer.output", "mlp.gate", "mlp.up", "mlp.down")
    assert sorted(changes) == config["target_modules"] == sorted(f"stacks.1.blocks.0.{part}" for part in parts)
    _, config = read(export_adapters(rack, tmp_path / "more", "progressive"))
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 3, 0.0)
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_ranks_and_scales_that_differ_are_in_patterns(tmp_path):
    spec = {
        "stacks": [{"n_blocks": 1, "block": BLOCK, "lora": {"rank": rank, "alpha": alpha}} for rank, alpha in ((2, 4), (4, 4))]
    }
    rack = RackSpec(vocab_size=8, d_model=16, **spec).build()
    _, config = read(export_adapters(rack, tmp_path))
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert set(config["rank_pattern"].values()) == {4}
    assert len(config["rank_pattern"]) == 7
    assert config["alpha_pattern"] == {}


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="no linear has an adapter 'stack'; there are: lora"):
        export_adapters(grown(n_blocks=1, lora=LORA), tmp_path / "none", "stack")
    with pytest.raises(ValueError, match="there are: none"):
        export_adapters(grown(n_blocks=1), tmp_path / "none")
    two = [{"n_blocks": 1, "block": BLOCK, "lora": {"dropout": dropout}} for dropout in (0.0, 0.2)]
    with pytest.raises(ValueError, match=r"one dropout for all adapters; these have 0\.0, 0\.2"):
        export_adapters(RackSpec(vocab_size=8, d_model=16, stacks=two).build(), tmp_path / "none")
    assert list(tmp_path.glob("none/*")) == []


def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    rack = grown(n_blocks=1, lora=LORA)
    export_adapters(rack, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        export_adapters(rack, tmp_path, base_model="another")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("tie", [True, False])
def test_what_is_merged_is_the_same_model_with_a_tied_head_too(tmp_path, tie):
    """As PEFT merges: into the weight that a linear has, wherever else that is read."""
    tree = {"vocab_size": 8, "d_model": 16, "stacks": [{"n_blocks": 2, "block": BLOCK}], "tie_embeddings": tie}
    tree["stacks"].append({"n_blocks": 2, "block": {**BLOCK, "share": "one"}})
    rack, plain = RackSpec(**tree, lora=LORA).build(seed=1).eval(), RackSpec(**tree).build(seed=1).eval()
    for index, (name, parameter) in enumerate(rack.named_parameters()):
        if is_adapter(name) and name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    plain.load_state_dict({name: tensor for name, tensor in rack.state_dict().items() if not is_adapter(name)})
    changes, _ = read(export_adapters(rack, tmp_path))
    with torch.no_grad():
        for name, change in changes.items():
            plain.get_submodule(name).weight += change
    assert ("head.output" in changes) is not tie
    torch.testing.assert_close(plain(TOKENS), rack(TOKENS), rtol=1e-4, atol=1e-4)


def test_an_adapter_that_was_put_on_a_tied_head_by_hand_is_not_exported(tmp_path):
    rack = RackSpec(vocab_size=8, d_model=16, stacks=[{"n_blocks": 1, "block": BLOCK}], tie_embeddings=True).build()
    replace(rack, "head.output", with_adapters(rack.head.output, {"lora": Adapter(16, 8, rank=2, alpha=2)}))
    with pytest.raises(
        ValueError, match=r"the adapter 'lora' of head\.output cannot be merged: its weight is also embedding\.weight"
    ):
        export_adapters(rack, tmp_path)
    assert not list(tmp_path.iterdir())
