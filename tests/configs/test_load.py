"""Reading YAML: strict keys, numbers, overrides at any depth, and one readable message for what cannot be read."""

import math

import pytest

from configs import ConfigError, Spec, load, read_yaml
from configs.load import apply_override, parse_override
from models import RackSpec


class Anything(Spec):
    value: float
    items: tuple[tuple[int, ...], ...] = ()
    name: str = "x"


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="config.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 0.0005),
        ("1e3", 1000.0),
        ("1E+3", 1000.0),
        ("-2e-3", -0.002),
        ("1.5e3", 1500.0),
        ("1.0", 1.0),
        (".5", 0.5),
        ("1_000.5", 1000.5),
        ("-.inf", -math.inf),
        ("12", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("0x10", 16),
        ("e3", "e3"),
        ("1e", "1e"),
        ("5e-4x", "5e-4x"),
        ("1.2.3", "1.2.3"),
        ("1:30", "1:30"),  # sixty-based in YAML 1.1: a slice of layers would become the number 90
        ("-2:", "-2:"),
        ("'5e-4'", "5e-4"),
        ("", None),
    ],
)
def test_scalars(write, text, value):
    found = read_yaml(write(f"value: {text}\n" if not text.endswith(":") else f"value: '{text}'\n"))["value"]
    assert found == value
    assert type(found) is type(value)


def test_a_slice_as_a_key_stays_text(write):
    assert read_yaml(write("1:3: a\n'-2:': b\n")) == {"1:3": "a", "-2:": "b"}


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a"),
        ("top:\n  inner: {x: 1, y: 2, x: 3}\n", 2, "x"),
        ("items:\n  - {k: 1}\n  - k: 1\n    k: 2\n", 4, "k"),
        ("1: a\n1: b\n", 2, "1"),
    ],
)
def test_a_key_given_twice_is_an_error_with_its_line(write, text, line, key):
    path = write(text)
    with pytest.raises(ConfigError, match=f"line {line}, column .*the key '{key}' is given twice") as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_merge_keys_and_anchors_work(write):
    text = "base: &base {a: 1, b: 2}\nother:\n  <<: *base\n  b: 3\n"
    assert read_yaml(write(text))["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3\n", "line .*not readable as YAML"),
        ("a: {b: 1\n", "line .*not readable as YAML"),
        ("a:\tb: c: d\n", "line .*not readable as YAML"),
        ("{{ name }}: 1\n", "line 1.*not readable as YAML: .*unhashable key"),
        ("? [a, b]\n: 1\n", "line 1.*not readable as YAML: .*unhashable key"),
        ("a: !!python/object:os.system x\n", "line 1.*not readable as YAML"),
        ("a: *nothing\n", "line 1.*not readable as YAML"),
        (b"a: \x00\n", "not readable as YAML"),
        (b"a: \xff\xfe\n", "not UTF-8 text"),
        ("- 1\n- 2\n", "a mapping is expected at the top level, found list"),
        ("just text\n", "a mapping is expected at the top level, found str"),
        ("", "a mapping is expected at the top level, found NoneType"),
    ],
)
def test_files_that_cannot_be_read(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.__cause__ is None


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            read_yaml(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("override", "steps", "value"),
    [
        ("a=1", ["a"], 1),
        ("a.b.c=x", ["a", "b", "c"], "x"),
        ("stacks[1].block.mixer.n_heads=8", ["stacks", 1, "block", "mixer", "n_heads"], 8),
        ("a[0][1][-2]=1", ["a", 0, 1, -2], 1),
        ('layers["-2:"].n=1', ["layers", "-2:", "n"], 1),
        ('["a.b"].c=1', ["a.b", "c"], 1),
        ("tasks.in-context-recall.n_train=5", ["tasks", "in-context-recall", "n_train"], 5),
        ("train.lr=5e-4", ["train", "lr"], 0.0005),
        ("lrs=[1e-3, 1e-4]", ["lrs"], [0.001, 0.0001]),
        ("a={b: 1}", ["a"], {"b": 1}),
        ("a=b=c", ["a"], "b=c"),
        ("a=", ["a"], None),
        ("a=null", ["a"], None),
    ],
)
def test_overrides_are_read(override, steps, value):
    assert parse_override(override) == (steps, value)


@pytest.mark.parametrize("text", ["", "a", "=1", "a.", "a.=1", "a..b=1", "a[=1", "a[x]=1", "a[1=1", ".a=1", "a[0]b=1", 'a["]=1'])
def test_overrides_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="expected key=value, for example"):
        parse_override(text)


def test_the_value_of_an_override_must_be_yaml():
    with pytest.raises(ConfigError, match=r"override 'a=\[1': .*|override 'a=\[1', line.*not readable as YAML"):
        parse_override("a=[1")
    with pytest.raises(ConfigError, match="the key 'b' is given twice"):
        parse_override("a={b: 1, b: 2}")


def test_overrides_reach_any_depth():
    tree = {"grid": [[1, 2], [3, {"deep": [4, 5]}]], "named": {"-2:": {"n": 1}, "a.b": 1}, "empty": None}
    for text in (
        "grid[0][1]=20",
        "grid[-1][-1].deep[0]=40",
        'named["-2:"].n=7',
        'named["a.b"]=2',
        "empty.new.deeper=1",
        "fresh.key=2",
        "named.added=[1]",
        "named.added[0]=9",
    ):
        apply_override(tree, text)
    assert tree == {
        "grid": [[1, 20], [3, {"deep": [40, 5]}]],
        "named": {"-2:": {"n": 7}, "a.b": 2, "added": [9]},
        "empty": {"new": {"deeper": 1}},
        "fresh": {"key": 2},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("items[2]=1", r"\[2\] does not exist, there is a list of 2"),
        ("items[-3]=1", r"\[-3\] does not exist, there is a list of 2"),
        ("items[0][5]=1", r"\[5\] does not exist, there is a list of 1"),
        ("value[0]=1", r"\[0\] does not exist, there is a float"),
        ("missing[0]=1", r"\[0\] does not exist"),
        ("items.name=1", "'name' is no key, there is a list"),
        ("name.first=1", "'first' is no key, there is a str"),
        ("items[0][0].x=1", "'x' is no key, there is a"),
    ],
)
def test_overrides_that_lead_nowhere(override, message):
    tree = {"value": 1.0, "name": "text", "items": [[1], [2]]}
    with pytest.raises(ConfigError, match=message) as caught:
        apply_override(tree, override)
    assert f"override '{override}'" in str(caught.value)
    assert tree["items"] == [[1], [2]]


def test_load_applies_overrides_in_order_and_then_validates(write):
    path = write("value: oops\nitems: [[1, 2], [3]]\n")
    spec = load(Anything, path, ["value=1", "value=5e-4", "items[1][0]=7", "name=y"])
    assert spec == Anything(value=0.0005, items=((1, 2), (7,)), name="y")
    with pytest.raises(ConfigError, match=rf"{path}: value: .*\(got 'oops'\)"):
        load(Anything, path)


RACK = """
vocab_size: 8
d_model: 16
stacks:
  - pattern: [[fast, fast], full]
    blocks:
      fast: {mixer: {kind: linear_attention, n_heads: 2}}
      full: {mixer: {kind: attention, n_heads: 2}}
  - n_blocks: 2
    block: {mixer: {kind: attention, n_heads: 2}}
"""


def test_overrides_reach_lists_of_lists_and_list_items_of_a_rack(write):
    overrides = ["stacks[0].pattern[0][1]=full", "stacks[1].block.mixer.n_heads=8", "stacks[-1].n_blocks=1", "lr_scale=5e-1"]
    rack = load(RackSpec, write(RACK), overrides)
    blocks = [block for stack in rack.stacks for block in stack.expanded()]
    assert [block.mixer.kind for block in blocks] == ["linear_attention", "attention", "attention", "attention"]
    assert blocks[-1].mixer.n_heads == 8
    assert rack.lr_scale == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stacks[0].pattern[0][2]=full", r"\[2\] does not exist, there is a list of 2"),
        ("stacks[0].pattern[0][1]=fulll", r"stacks\[0\].pattern: 'fulll' is not in blocks; did you mean 'full'"),
        ("stacks[1].block.mixer.n_heads=3", r"stacks\[1\].block.mixer: n_heads = 3 must divide d_model = 16"),
        ("stacks[1].block.mixer.n_hedas=4", r"stacks\[1\].block.mixer.n_hedas: unknown key .*did you mean 'n_heads'"),
        ("stacks[1].block={n_heads: 1, n_heads: 2}", "the key 'n_heads' is given twice"),
    ],
)
def test_what_an_override_of_a_rack_breaks_is_told_at_its_place(write, override, message):
    with pytest.raises(ConfigError, match=message):
        load(RackSpec, write(RACK), [override])
