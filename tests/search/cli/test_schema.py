"""The JSON Schema of configuration files: what the specs take it takes, and misspelt keys it does not."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from configs import ConfigError, read_yaml
from configs.load import apply_override
from models import CHANNEL_MIXERS, MIXERS
from search.cli.main import FILES
from search.cli.schema import schema_of
from search.cli.show import read_spec

ROOT = Path(__file__).parents[3]
ALL_CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    schema = schema_of()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


def tree_of(path):
    """A file as an editor sees it, where all keys are texts."""
    return json.loads(json.dumps(read_yaml(path)))


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=[str(path.relative_to(ROOT / "configs")) for path in ALL_CONFIGS])
def test_every_shipped_file_is_valid_and_none_with_a_misspelt_key(validator, path):
    tree = tree_of(path)
    assert validator.is_valid(tree), [error.message for error in validator.iter_errors(tree)]
    for key in tree:
        assert not validator.is_valid({name + "x" * (name == key): value for name, value in tree.items()}), key


@pytest.mark.parametrize("path", ["space.yaml", "mad_length.yaml", "placement.yaml", "tasks/needle.yaml", "supernet.yaml"])
def test_a_saved_spec_is_valid(validator, path):
    assert validator.is_valid(json.loads(json.dumps(read_spec(ROOT / "configs" / path).saved())))


DEEP = {
    "hybrid.yaml": ["stacks[0].block.mixer.n_hedas", "stacks[1].blocks.fast.dropuot", "stacks[1].n_block"],
    "space.yaml": ["stacks[0].block.mixer.mixers.gdn.n_hedas", "stacks[0].block.mlp.d_f"],
    "mad_quick.yaml": [
        "architectures.attention[0].n_hedas",
        "tasks.compression.task.vocabsize",
        "tasks.compression.n_trian",
        "train.patiens",
    ],
    "pipeline_28_layers.yaml": [
        "supernet.sampler.frist",
        "placement.strategy.widht",
        "supernet.data.tasks.text.task.file",
        "supernet.train.schedule.kindd",
    ],
}


@pytest.mark.parametrize(("path", "key"), [(path, key) for path, keys in DEEP.items() for key in keys])
def test_a_misspelt_key_is_found_at_any_depth(validator, path, key):
    tree = tree_of(ROOT / "configs" / path)
    apply_override(tree, f"{key}=1")
    assert not validator.is_valid(tree)


RACK = {"vocab_size": 8, "d_model": 16}
MAD = {"job": "mad", "architectures": {"a": ["attention"]}, "tasks": ["compression"]}
SUPERNET = tree_of(ROOT / "configs/supernet.yaml")


@pytest.mark.parametrize(
    "tree",
    [
        {**RACK, "layers": ["mh-attention", "gated_delta_net(n_heads=4, d_conv=2)", {"kind": "mlp", "d_ff": 8}, "moe"]},
        {**RACK, "norm": "layernorm", "layers": ["attention"]},
        {**RACK, "stacks": [{"n_blocks": 1, "block": {"norm": None, "mixer": "attention", "mlp": None}}]},
        {**RACK, "stacks": [{"n_blocks": 3, "pattern": [["a", "b"], {"pattern": ["a"]}], "blocks": {"a": {}, "b": {}}}]},
        {**RACK, "stacks": [{"blocks": [{}, {"mixer": {"kind": "gated-delta-net"}}]}]},
        {**RACK, "init_std": 0.02, "layers": ["attention"]},
        MAD,
        {**MAD, "tasks": {"compression": None, "in_context_recall": {"task": {"seq_len": 8}, "changes": {"n_train": [8]}}}},
        {**MAD, "tasks": {"own": {"task": {"kind": "memorization"}, "n_train": 8}}, "changes": ["n_train"], "d_model": 8},
        {**MAD, "tasks": {"state-tracking": {"changes": {"group": ["Z60"], "test_seq_len": [64]}}}, "only": ["state-tracking"]},
        {
            **MAD,
            "architectures": {"a": "configs/llama.yaml(d_model=8)", "b": {"rack": "space.yaml", "place": "all:gdn"}, "c": None},
        },
        {**MAD, "architectures": {"a": {"layers": ["attention"]}, "b": {"stacks": [{"n_blocks": 1, "block": {}}]}}},
        {**SUPERNET, "teacher": "main", "sampler": "balanced"},
        {"job": "placement", "supernet": "x", "budgets": [1, {"kv_bytes": "50%"}], "beam_width": 3, "rivals": ["interleave"]},
        {
            "job": "placement",
            "supernet": "x",
            "budgets": [2],
            "strategy": "exact",
            "rivals": {"a": "all:gdn", "b": {"kind": "random"}},
        },
        {
            "job": "placement",
            "supernet": "x",
            "budgets": [{"energy": "50%"}],
            "cost_tables": ["energy.yaml", {"name": "area", "unit": "mm2", "layers": {"*": {"gdn": 1}}}],
        },
    ],
    ids=str,
)
def test_short_forms_are_valid(validator, tree):
    assert validator.is_valid(tree), [error.message for error in validator.iter_errors(tree)]


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {**RACK},
        {"d_model": 16, "layers": ["attention"]},
        {**RACK, "layers": []},
        {**RACK, "layers": ["atention"]},
        {**RACK, "layers": ["atention(n_heads=4)"]},
        {**RACK, "layers": ["attention(n_heads=4"]},
        {**RACK, "norm": "rmsnrm", "layers": ["attention"]},
        {**RACK, "layers": [{"kind": "attention", "n_heads": "many"}]},
        {**MAD, "job": "madd"},
        {**MAD, "architectures": {"a": {"rack": "x.yaml", "palce": "all:gdn"}}},
        {**MAD, "tasks": ["compresion"]},
        {**MAD, "tasks": {"own": {"task": {"vocab_size": 8}}}},
        {**MAD, "mode": "dirty"},
        {**SUPERNET, "sampler": "balancd"},
    ],
    ids=str,
)
def test_what_is_wrong_is_invalid(validator, tree):
    assert not validator.is_valid(tree)


def test_every_kind_is_offered_with_its_options(validator):
    definitions = validator.schema["$defs"]
    for noun, registry in (("mixer", MIXERS), ("channel mixer", CHANNEL_MIXERS)):
        for kind in registry:
            options = set(registry.spec_of(kind).model_fields)
            assert options <= set(definitions[f"{noun} {kind}"]["properties"])
            assert kind in definitions[noun]["anyOf"][0]["enum"]


@pytest.mark.parametrize("file", FILES)
def test_a_schema_of_one_kind_of_file_holds_no_more_than_it_needs(validator, file):
    schema = json.loads(json.dumps(schema_of(file)))
    assert schema["$defs"].items() <= validator.schema["$defs"].items()  # which have been checked
    jsonschema.Draft202012Validator.check_schema({**schema, "$defs": {}})
    text = json.dumps(schema)
    assert all(f'"#/$defs/{name}"' in text for name in schema["$defs"])


def test_the_command_prints_or_writes(tmp_path, capsys):
    from search.cli.schema import run_schema

    arguments = type("Arguments", (), {"file": "profile"})
    assert run_schema(arguments, [], None) == 0
    printed = capsys.readouterr().out
    assert run_schema(arguments, [f"out={tmp_path / 'deep' / 'profile.json'}"], None) == 0
    assert (tmp_path / "deep" / "profile.json").read_text() == printed
    assert json.loads(printed) == schema_of("profile")
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="only out=FILE can be set, not 'seed=1'"):
        run_schema(arguments, ["seed=1"], None)


def test_making_a_schema_leaves_the_specs_alone(validator):
    before = copy.deepcopy(validator.schema)
    assert schema_of() == before
