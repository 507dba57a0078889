"""Rack files as architectures of the suite."""

import pytest

from configs import ConfigError
from configs.load import validate
from models import RackSpec
from search.jobs.mad.racks import architecture_name
from search.jobs.mad.spec import MadSpec
from tests.search.cases import mad_spec

RACK = """
vocab_size: 99
d_model: 16
norm: layernorm
lr_scale: 0.5
tie_embeddings: true
stacks:
  - {n_blocks: 2, block: {mixer: {kind: attention, n_heads: 2}, mlp: {kind: mlp, d_ff: 8}}, layers: {"-1": {dropout: 0.1}}}
"""
SPACE = """
vocab_size: 99
d_model: 16
stacks:
  - n_blocks: 3
    block:
      mixer:
        kind: stochastic
        main: full
        mixers: {full: {kind: attention, n_heads: 2}, linear: {kind: linear_attention, n_heads: 2}}
"""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rack.yaml").write_text(RACK)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def racks_of(**architectures):
    return [trial.spec.rack for trial in mad_spec(architectures=architectures).settings()]


def test_a_rack_file_gives_its_stacks_and_the_task_the_rest():
    (rack,) = racks_of(a="rack.yaml")
    (listed,) = racks_of(a=[{"kind": "attention", "n_heads": 2}])
    written = validate(RackSpec, {**rack.to_dict(), "vocab_size": 99}, "rack")
    assert (rack.vocab_size, rack.max_length, rack.head, rack.tie_embeddings) == (8, 16, listed.head, False)
    assert (rack.d_model, rack.norm.kind, rack.lr_scale) == (16, "layernorm", 0.5)
    assert [block.dropout for block in rack.stacks[0].expanded()] == [0.0, 0.1]
    assert rack.stacks == written.stacks
    assert len(rack.build()(listed.build().embedding.weight.new_zeros(1, 4).long())) == 1


def test_what_is_saved_names_no_file(files):
    spec = mad_spec(architectures={"a": "rack.yaml", "b": "space.yaml(place=all:linear)"})
    (files / "rack.yaml").unlink()
    (files / "space.yaml").unlink()
    assert ".yaml" not in str(spec.to_dict())
    assert MadSpec(**spec.to_dict()) == spec


def mixers_of(rack):
    return [block.mixer.kind for stack in rack.stacks for block in stack.expanded()]


def test_a_space_is_placed():
    linear, mixed, listed = racks_of(
        a="space.yaml(place=all:linear)",
        b={"rack": "space.yaml", "place": ["full", "linear", "full"]},
        c="space.yaml(place='linear, full*2')",
    )
    assert mixers_of(linear) == ["linear_attention"] * 3
    assert mixers_of(mixed) == ["attention", "linear_attention", "attention"]
    assert mixers_of(listed) == ["linear_attention", "attention", "attention"]


def test_a_file_is_overridden_in_parentheses():
    (rack,) = racks_of(a="rack.yaml(d_model=8, stacks[0].n_blocks=3)")
    assert rack.d_model == 8
    assert len(rack.stacks[0].expanded()) == 3


def test_globs_about_embedding_or_head_stay_behind(files):
    (files / "rack.yaml").write_text(
        RACK + "parameters: {'head.*': {lr_scale: 0}, '*.mixer.*': {lr_scale: 0.1}, '*weight': {lr_scale: 0.3}}\n"
    )
    (rack,) = racks_of(a="rack.yaml")
    assert {glob: fields.lr_scale for glob, fields in rack.parameters.items()} == {"*.mixer.*": 0.1, "*weight": 0.3}


@pytest.mark.parametrize(
    ("glob", "count"),
    [("stacks.0", 20), ("stacks", 20), ("*.blocks.0", 10), ("stacks.0.blocks.1.mixer", 4), ("*.mlp", 4), ("*.query.weight", 2)],
)
def test_globs_about_components_go_along(files, glob, count):
    """Their order counts: of two that say the same of a parameter, the later one holds."""
    said = f"'*': {{weight_decay: 0.1}}, '{glob}': {{weight_decay: 0.2}}, '*.mixer.output': {{weight_decay: 0.3}}"
    (files / "rack.yaml").write_text(f"{RACK}parameters: {{{said}}}\n")
    (rack,) = racks_of(a="rack.yaml")
    assert list(rack.parameters) == ["*", glob, "*.mixer.output"]
    alone = RackSpec(**{**rack.to_dict(), "parameters": {glob: {"lr_scale": 0.5}}, "lr_scale": 1.0}).build()
    assert sum(getattr(parameter, "lr_scale", 1.0) == 0.5 for parameter in alone.parameters()) == count


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("missing.yaml", "missing.yaml: cannot be read: No such file"),
        ("space.yaml", "space.yaml: this is a space, 3 choices are open; say which, as in space.yaml(place=all:linear)"),
        ("space.yaml(place=all:lienar)", "did you mean 'linear'"),
        ("space.yaml(place=3)", "3 choices are open"),
        ({"rack": "space.yaml(place=all:full)", "place": "all:full"}, "one placement is expected, got 2"),
        ("rack.yaml(place=all:linear)", "rack.yaml: place: there is nothing to choose"),
        ("rack.yaml(d_model=15)", "rack.yaml: stacks[0].block.mixer: n_heads = 2 must divide d_model = 15"),
        ("rack.yaml(d_model=15", "character 10: this '(' is not closed"),
        ({"rack": "rack.yaml", "palce": "all:linear"}, "unknown key 'palce' beside rack; did you mean 'place'"),
        ({"rack": 3}, "rack: the path of a rack file is expected, got 3"),
        ("no_rack.yaml", "no_rack.yaml: no rack: there are neither stacks nor layers"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_file_is_told(files, value, expected):
    (files / "no_rack.yaml").write_text("job: mad\n")
    raw = {**mad_spec().to_dict(), "architectures": {"a": value}}
    with pytest.raises(ConfigError) as caught:
        validate(MadSpec, raw, "file")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("file: architectures.a: ")
    assert expected in lines[0]


def test_architectures_are_called_by_their_file():
    assert architecture_name("configs/llama.yaml") == "llama"
    assert architecture_name("configs/five.yaml(place=all:gdn, d_model=8)") == "five(place=all:gdn, d_model=8)"
