"""Input that is too deep, too long or too large, or that cannot be what its tag says: one message, before anything is made."""

import json

import pytest
from pydantic import ValidationError

from configs import ConfigError, StackWiseConfig, read_yaml
from configs.errors import config_error
from configs.limits import MOST_BLOCKS, MOST_LEVELS
from configs.load import apply_override, parse_override
from configs.parse_json import parse_json
from configs.parse_yaml import parse_yaml
from models import RackSpec

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [*{before}, *{before}]}}\n"
    for before, name in zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst", strict=True)
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{number + 1}: &a{number + 1} [*a{number}]\n" for number in range(100))

TEXTS = {
    "aliases that multiply": (LAUGHS, "values, aliases expanded"),
    "merges that multiply": (MERGES, "values, aliases expanded"),
    "a chain of aliases": (CHAIN, "levels of lists and mappings, aliases expanded"),
    "an alias of itself": ("a: &a [*a]", "an alias stands inside of what it is an alias of"),
    "levels in brackets": ("a: " + "[" * 3000 + "]" * 3000, f"more than {MOST_LEVELS} levels"),
    "levels of lines": ("\n".join(" " * number + "a:" for number in range(300)), f"more than {MOST_LEVELS} levels"),
    "length": ("a: " + "x" * 300_000, "bytes of YAML"),
    "digits": ("a: " + "9" * 50_000, "an integer of 50,000 digits"),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, "an integer of 5,002 digits"),
    "65 bits": ("a: 9223372036854775808", "64 bits hold up to 9,223,372,036,854,775,807"),
    "no integer": ("a: !!int abc", "'abc' is no int"),
    "no float": ("a: !!float x", "'x' is no float"),
    "no bool": ("a: !!bool maybe", "'maybe' is no bool"),
    "no null": ("a: !!null x", "'x' is no null"),
    "a date": ("a: !!timestamp 2020-99-99", "the tag 'tag:yaml.org,2002:timestamp'"),
    "bytes": ("a: !!binary aaaa", "the tag 'tag:yaml.org,2002:binary'"),
    "a set": ("a: !!set {b}", "the tag 'tag:yaml.org,2002:set'"),
    "a list that is a mapping": ("a: !!map [1]", "what stands there is no map"),
    "an escape that is no character": ('a: "\\UFFFFFFFF"', "not readable as YAML"),
    "half a character": ('a: "\\ud800"', "which no file or terminal takes"),
    "a zero byte": ('a: "\\0"', "which no file or terminal takes"),
    "a key that is true": ("on: 1", "a key is text or a whole number, not True"),
    "a version of thousands of digits": ("%YAML " + "9" * 6000 + ".1\n---\na: 1", "not readable as YAML"),
}


@pytest.mark.parametrize("text", ["a: 1\n#é" + "é" * 70_000 + "\nb: 2\n", "a: 1\n# " + "é" * 70_000 + "\nb: 2\n"])
def test_a_file_that_is_too_long_in_bytes_alone_is_not_cut_off(tmp_path, text):
    path = tmp_path / "long.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{path}: more than 131,072 bytes of YAML"):
        read_yaml(path)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("name", TEXTS)
def test_yaml_beyond_a_limit_is_one_message(name):
    text, told = TEXTS[name]
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "file")
    assert told in str(caught.value)
    assert str(caught.value).startswith("file")
    assert len(str(caught.value)) < 1000


def test_dates_are_text_and_aliases_are_values_of_their_own():
    tree = parse_yaml("a: 2020-99-99\nb: &b {c: 1}\nd: *b\n", "file")
    assert tree["a"] == "2020-99-99"
    apply_override(tree, "d.c=2")
    assert (tree["b"], tree["d"]) == ({"c": 1}, {"c": 2})


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.b=" + "9" * 5000, "an integer of 5,000 digits"),
        (".".join(["a"] * 3000) + "=1", "a path of 3,000 keys"),
        ("a[" + "9" * 5000 + "]=1", "expected key=value"),
        ("a=" + "x" * 300_000, "bytes of YAML"),
    ],
    ids=["digits", "depth", "index", "length"],
)
def test_overrides_beyond_a_limit_are_one_message(text, told):
    with pytest.raises(ConfigError, match=told) as caught:
        parse_override(text)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "not readable as JSON"),
        (json.dumps({"a": 2**63}), "64 bits do not hold"),
        ('{"a": ' + "9" * 5000 + "}", "not readable as JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ('{"a": "\\u0000"}', "no file or terminal takes"),
        ("[" * 70 + "]" * 70, f"more than {MOST_LEVELS} levels"),
        ('{"a": ', "line 1"),
    ],
    ids=["open", "bits", "digits", "twice", "zero byte", "levels", "torn"],
)
def test_json_beyond_a_limit_is_one_message(text, told):
    with pytest.raises(ConfigError, match=told):
        parse_json(text, "file")


def test_a_file_without_an_end_is_read_no_further():
    with pytest.raises(ConfigError, match="bytes of YAML"):
        read_yaml("/dev/zero")


ATTENTION = {"mixer": {"kind": "attention", "n_heads": 2}}
PATTERN = {"pattern": [{"pattern": [{"pattern": ["a"] * 50}] * 50}] * 3, "blocks": {"a": ATTENTION}}
SIZES = {
    "blocks": ({"stacks": [{"n_blocks": 10**9, "block": ATTENTION}]}, "stacks[0].n_blocks: ", "(got 1000000000)"),
    "blocks in all": ({"stacks": [{"n_blocks": 1000, "block": ATTENTION}] * 2}, "stacks: ", f"at most {MOST_BLOCKS:,}"),
    "patterns in patterns": ({"stacks": [PATTERN]}, "stacks[0].pattern: ", "comes to 7,500 blocks"),
    "vocabulary": ({"vocab_size": 10**15}, "vocab_size: ", "(got 1000000000000000)"),
    "width": ({"d_model": 10**9}, "d_model: ", "(got 1000000000)"),
    "no number": ({"d_model": True}, "d_model: ", "a number is expected, not true"),
    "thousands of digits": ({"vocab_size": 10**5000}, "vocab_size: ", "bits is too large"),
    "parameters": (
        {"stacks": [{"n_blocks": 2, "block": {"mlp": {"kind": "swiglu", "d_ff": 10**12}}}]},
        "stacks[0].block.mlp: ",
        "a rack has at most 10,000,000,000,000",
    ),
    "an option that overflows": (
        {"stacks": [{"n_blocks": 2, "block": {"mlp": {"kind": "swiglu", "d_ff": 10**18}}}]},
        "stacks[0].block.mlp: ",
        "(d_ff = 1000000000000000000)",
    ),
    "a table that is drawn": (
        {"stacks": [{"n_blocks": 2, "block": {"mixer": {"kind": "kernel_attention", "n_heads": 2, "kernel_dim": 10**12}}}]},
        "stacks[0].block.mixer: ",
        "a rack has at most 10,000,000,000,000",
    ),
    "time steps": ({"time": {"n_steps": 2**62}}, "time.n_steps: ", "(got 4611686018427387904)"),
    "channels of a time": ({"time": {"n_steps": 10, "d_time": 2**40}}, "time.d_time: ", "(got 1099511627776)"),
    "a name with a dot": (
        {"stacks": [{"n_blocks": 1, "block": {"mixer": "shared.x"}}]},
        "stacks[0].block.mixer: ",
        "unknown mixer",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", SIZES)
def test_a_rack_beyond_a_limit_is_one_message(name):
    keys, place, told = SIZES[name]
    tree = {"vocab_size": 8, "d_model": 16, "stacks": [{"n_blocks": 1, "block": ATTENTION}], **keys}
    with pytest.raises(ValidationError) as caught:
        RackSpec.model_validate(tree)
    lines = str(config_error("rack", caught.value)).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"rack: {place}")
    assert told in lines[0]


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"model": {"architecture": {"n_stacks": 10**6}}}, "model.architecture.n_stacks: .* 1024 "),
        ({"model": {"architecture": {"blocks_per_stack": 10**6}}}, "model.architecture.blocks_per_stack: .* 1024 "),
        ({"model": {"architecture": {"n_stacks": 300}}}, "300 stacks of 4 are 1,200 blocks: a rack has at most 1,024"),
        ({"model": {"d_model": 10**9}}, r"model.d_model: .*\(got 1000000000\)"),
        ({"model": {"vocab_size": 10**15}}, "model.vocab_size: "),
        ({"model": {"max_seq_len": 10**15}}, "model.max_seq_len: "),
        ({"training": {"progressive": {"num_time_steps": 10**15}}}, "training.progressive.num_time_steps: "),
        ({"training": {"progressive": {"time_per_stack": 10**15}}}, "training.progressive.time_per_stack: "),
        ({"training": {"progressive": {"time_embedding_dim": 10**15}}}, "training.progressive.time_embedding_dim: "),
    ],
)
def test_a_configuration_of_the_guide_beyond_a_limit_is_one_message(tree, told):
    with pytest.raises(ConfigError, match=told) as caught:
        StackWiseConfig.from_dict(tree).validate()
    assert len(str(caught.value).splitlines()) == 1
