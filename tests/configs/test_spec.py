"""Specs: closed, frozen, hashed by content, and all that is wrong with one said at once."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, PositiveInt, ValidationError

from configs import ConfigError, Problems, Spec, load
from configs.errors import yaml_path
from configs.load import load_saved, validate
from configs.merge import merge
from configs.spec import SPEC_VERSION
from models import RackSpec
from search.jobs.mad.spec import MadSpec

ROOT = Path(__file__).parents[2]


class Inner(Spec):
    width: PositiveInt = 4
    scale: float = 1.0


class Outer(Spec):
    short_forms = ("size",)
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)
    choice: Annotated[int, Field(ge=1, le=3)] = 1

    @classmethod
    def expand_short_forms(cls, raw, problems):
        size = raw.pop("size", None)
        if size is None:
            return raw
        if isinstance(size, int):
            return {**raw, "inner": {"width": size}}
        problems.add(("size",), "size must be an integer", size)
        return raw


class Twin(Spec):
    width: PositiveInt = 4
    scale: float = 1.0


def messages(spec_class, tree):
    with pytest.raises(ConfigError) as caught:
        validate(spec_class, tree, "file")
    return str(caught.value).splitlines()


def test_all_problems_at_once_each_at_its_path():
    found = messages(
        Outer,
        {
            "size": "big",
            "rows": [{"width": 0}, {"widht": 3}, 7],
            "named": {"a": {"scale": "x"}, "b c": {"scale": float("inf")}},
            "choice": 9,
            "chioce": 1,
        },
    )
    expected = [
        ("size", "size must be an integer"),
        ("rows[0].width", "greater than 0 (got 0)"),
        ("rows[1].widht", "unknown key 'widht'; did you mean 'width'? Known: scale, width"),
        ("rows[2]", "a mapping is expected (got 7)"),
        ("named.a.scale", "(got 'x')"),
        ('named["b c"].scale', "finite number (got inf)"),
        ("choice", "less than or equal to 3 (got 9)"),
        ("chioce", "did you mean 'choice'? Known: choice, inner, named, rows, size"),
    ]
    assert len(found) == len(expected)
    for path, text in expected:
        assert sum(line.startswith(f"file: {path}: ") and text in line for line in found) == 1, (path, found)
    assert not any(word in line for line in found for word in ("Inner", "Outer", "pydantic", "ValidationError", "Traceback"))


def test_all_problems_of_a_rack_at_once(tmp_path):
    path = tmp_path / "rack.yaml"
    path.write_text(
        """\
vocab_size: 0
d_model: 32
d_modle: 64
stacks:
  - n_blocks: 2
    block: {mixer: {kind: atention}, mlp: {kind: swiglu, d_fff: 3}}
  - n_blocks: 1
    block: {mixer: {kind: attention, n_heads: 3}, dropout: 1.5, mixr: null}
  - pattern: [a]
    blocks: {a: {mixer: {kind: mamba, d_state: many}, norm: {kind: batchnorm}}}
head: {kind: langauge_model}
"""
    )
    with pytest.raises(ConfigError) as caught:
        load(RackSpec, path)
    lines = str(caught.value).splitlines()
    expected = {
        "vocab_size": "greater than 0 (got 0)",
        "d_modle": "did you mean 'd_model'?",
        "stacks[0].block.mixer": "unknown mixer 'atention'; did you mean 'attention'?",
        "stacks[0].block.mlp.d_fff": "did you mean 'd_ff'?",
        "stacks[1].block.mixer": "n_heads = 3 must divide d_model = 32",
        "stacks[1].block.dropout": "less than 1 (got 1.5)",
        "stacks[1].block.mixr": "did you mean 'mixer'?",
        "stacks[2].blocks.a.mixer.d_state": "(got 'many')",
        "stacks[2].blocks.a.norm": "unknown norm 'batchnorm'",
        "head": "unknown head 'langauge_model'; did you mean 'language_model'?",
    }
    for place, text in expected.items():
        assert sum(line.startswith(f"{path}: {place}: ") and text in line for line in lines) == 1, (place, lines)
    assert len(lines) == len(expected), lines


@pytest.mark.parametrize(
    ("override", "path", "text"),
    [
        ({"tasks": ["in-context-recal"]}, "tasks.in-context-recal", "did you mean 'in-context-recall'?"),
        ({"tasks": {"compression": 5}}, "tasks.compression", "(got 5)"),
        ({"tasks": {"compression": [1]}}, "tasks.compression", "a mapping is expected"),
        ({"tasks": {"in-context-recall": {}, "in_context_recall": {}}}, "tasks.in_context_recall", "given twice"),
        ({"tasks": "compression"}, "tasks", "a mapping is expected (got 'compression')"),
        ({"tasks": []}, "tasks", "at least 1 item"),
        ({"tasks": {"compression": {"task": {"seq_len": 1}}}}, "tasks.compression.task", "at least 2; got 1"),
        ({"tasks": {"compression": {"task": {"seq_lne": 64}}}}, "tasks.compression.task.seq_lne", "did you mean 'seq_len'?"),
        ({"tasks": {"compression": {"changes": {"seq_len": [1]}}}}, "tasks.compression.changes.seq_len[0]", "at least 2"),
        ({"tasks": {"compression": {"changes": {"seq_lne": [64]}}}}, "tasks.compression.changes.seq_lne", "mean 'seq_len'?"),
        ({"tasks": {"compression": {"changes": {"seq_len": ["x"]}}}}, "tasks.compression.changes.seq_len[0]", "(got 'x')"),
        ({"only": ["compresion"]}, "tasks.compresion", "did you mean 'compression'?"),
        ({"only": "compression"}, "only", "expected a list of tasks, got 'compression'"),
        ({"only": ["compression"], "tasks": 5}, "tasks", "a mapping is expected (got 5)"),
        ({"changes": "some"}, "changes", "expected all, none or a list, got 'some'"),
        ({"changes": ["seq_lne"]}, "changes", "no task has the change 'seq_lne'; did you mean 'seq_len'?"),
        ({"changes": [["seq_len"]]}, "changes", "no task has the change"),
        ({"lrs": 0.1}, "lrs", "a list is expected: write [0.1] (got 0.1)"),
        ({"lrs": []}, "lrs", "at least 1 item"),
        ({"lrs": [0]}, "lrs[0]", "greater than 0 (got 0)"),
        ({"lrs": ["fast"]}, "lrs[0]", "(got 'fast')"),
        ({"mode": "madd"}, "mode", "'mad' or 'clean'"),
        ({"train": {"schedule": {"kind": "cosin"}}}, "train.schedule.kind", "'cosine'"),
        ({"train": {"betas": [0.9]}}, "train.betas[1]", "required"),
        ({"architectures": {}}, "architectures", "at least 1 item"),
        ({"architectures": {"a": ["atention"]}}, "architectures.a[0]", "did you mean 'attention'?"),
        ({"architectures": {"a": [{"kind": "attention", "n_heads": 3}]}}, "architectures.a[0]", "n_heads = 3 must divide"),
        ({"architectures": {"a": [{"kind": "attention", "n_hedas": 2}]}}, "architectures.a[0].n_hedas", "did you mean"),
        ({"architectures": {"a": []}}, "architectures.a", "a list of layers is expected"),
        ({"architectures": {"a": 5}}, "architectures.a", "(got 5)"),
        ({"architectures": {"a": {"layers": ["swiglu"], "stacks": []}}}, "architectures.a.layers", "layers or stacks, not both"),
        ({"d_model": "wide"}, "architectures.a.d_model", "(got 'wide')"),
        ({"d_model": -1}, "architectures.a.d_model", "greater than 0 (got -1)"),
        ({"epochs": 1.5}, "epochs", "(got 1.5)"),
    ],
    ids=str,
)
def test_one_mistake_is_one_message(override, path, text):
    base = {"architectures": {"a": ["attention", "swiglu"]}, "tasks": ["compression"], "d_model": 16}
    lines = messages(MadSpec, {**base, **override})
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"file: {path}: "), lines
    assert text in lines[0]


def test_a_problem_of_a_part_hides_the_one_of_the_whole():
    problems = Problems()
    problems.add(("a", "b"), "deep")
    problems.add(("a",), "shallow")
    problems.add((), "all")
    with pytest.raises(ValidationError) as caught:
        problems.raise_if_any("X")
    assert [error["msg"] for error in caught.value.errors()] == ["deep", "all"]


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ((), "(whole file)"),
        (("a", 0, "b"), "a[0].b"),
        (("a", "-2:", "b"), 'a["-2:"].b'),
        (("blocks", "<named>", "fast"), "blocks.fast"),
        (("in-context-recall",), "in-context-recall"),
    ],
)
def test_paths_are_those_of_the_file(location, text):
    assert yaml_path(location) == text


def test_specs_are_frozen_and_closed():
    spec = Inner()
    with pytest.raises(ValidationError, match="frozen"):
        spec.width = 3
    with pytest.raises(ValidationError, match="did you mean 'width'"):
        Inner(widht=3)


def test_the_fingerprint_is_of_the_content():
    base = Outer(inner={"width": 3}, named={"a": {}, "b": {"scale": 2}})
    assert base.fingerprint() == Outer(named={"b": {"scale": 2.0}, "a": {"width": 4}}, inner=Inner(width=3)).fingerprint()
    assert base.fingerprint() == Outer(size=3, named=base.named).fingerprint()
    assert len(base.fingerprint()) == 12
    others = [
        Outer(inner={"width": 4}, named=base.named),
        Outer(inner={"width": 3, "scale": 1.5}, named=base.named),
        Outer(inner={"width": 3}, named={"a": {"scale": 2}, "b": {}}),
        Outer(inner={"width": 3}, named=base.named, rows=[{}]),
        Outer(inner={"width": 3}, named=base.named, choice=2),
    ]
    assert len({spec.fingerprint() for spec in (base, *others)}) == 6


def test_order_is_content_where_a_field_says_so():
    class Queue(Spec):
        outside_fingerprint = ("hints",)
        jobs: OrderedDict[str, Inner]
        hints: OrderedDict[str, int] = Field(default_factory=OrderedDict)

    class Queues(Spec):
        named: dict[str, Queue]

    first, second = (Queue(jobs={name: {} for name in order}) for order in ("ab", "ba"))
    assert first != second
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == Queue(**first.to_dict()).fingerprint() == Queue(jobs=first.jobs, hints={"x": 1}).fingerprint()
    assert type(first.to_dict()["jobs"]) is dict
    assert first.content()["jobs"] != second.content()["jobs"], "what a run's folder compares"
    nested = [Queues(named=named) for named in ({"x": first, "y": second}, {"y": second, "x": first}, {"x": second, "y": first})]
    assert nested[0] == nested[1] != nested[2]
    assert nested[0].fingerprint() == nested[1].fingerprint() != nested[2].fingerprint()


def test_a_fingerprint_knows_what_it_is_of():
    assert Inner().to_dict() == Twin().to_dict()
    assert Inner().fingerprint() != Twin().fingerprint()


def test_equal_specs_have_equal_hashes():
    first, second = (Outer(inner={"width": width}) for width in (3, 3))
    assert first == second
    assert len({first, second, Outer()}) == 2


def test_the_fingerprint_is_the_same_in_every_process():
    code = """
from configs import Spec
class Held(Spec):
    named: dict[str, float]
print(Held(named={name: 0.1 for name in set("abcdefgh")}).fingerprint())
"""

    def run(hash_seed):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert run("1") == run("2")


@pytest.mark.parametrize(
    ("base", "override", "merged"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 9}}, {"a": 1, "b": {"c": 9, "d": 3}}),
        ({"m": {"kind": "x", "n": 1}}, {"m": {"n": 2}}, {"m": {"kind": "x", "n": 2}}),
        ({"m": {"kind": "x", "n": 1}}, {"m": {"kind": "x", "p": 2}}, {"m": {"kind": "x", "n": 1, "p": 2}}),
        ({"m": {"kind": "x", "n": 1}}, {"m": {"kind": "y"}}, {"m": {"kind": "y"}}),
        ({"m": {"kind": "x"}}, {"m": None}, {"m": None}),
        ({"m": None}, {"m": {"kind": "x"}}, {"m": {"kind": "x"}}),
        ({"l": [1, 2]}, {"l": [3]}, {"l": [3]}),
    ],
)
def test_merge(base, override, merged):
    assert merge(base, override) == merged


def test_a_misspelt_required_key_is_one_message():
    raw = {"vocab_size": 16, "d_modle": 128, "layers": ["attention", "swiglu"]}
    assert messages(RackSpec, raw)[0].startswith("file: d_modle: unknown key 'd_modle'; did you mean 'd_model'?")
    assert len(messages(RackSpec, raw)) == 1


def test_a_saved_spec_says_its_version_and_no_other_one_is_read(tmp_path):
    spec = load(MadSpec, ROOT / "configs" / "mad_quick.yaml")
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec.saved()))
    assert f'"spec_version": {SPEC_VERSION}' in path.read_text()
    assert load(MadSpec, path) == load_saved(MadSpec, path) == spec
    path.write_text(json.dumps(spec.to_dict()))
    assert load(MadSpec, path) == spec, "a file that a user wrote says none"
    told = r"spec\.json: saved in version {} of the format, but this mixrack reads version 4 alone: run it again"
    with pytest.raises(ConfigError, match=told.format(1)):
        load_saved(MadSpec, path)
    for version in (SPEC_VERSION - 1, SPEC_VERSION + 1, 0, "new"):
        path.write_text(json.dumps({**spec.to_dict(), "spec_version": version}))
        for read in (load, load_saved):
            with pytest.raises(ConfigError, match=told.format(version)):
                read(MadSpec, path)


@pytest.mark.parametrize(
    "keys",
    [
        {"stacks": [{"n_blocks": 1, "block": {"mixer": "attention", "spec_version": 1}}]},
        {"stacks": [{"n_blocks": 1, "block": {"mixer": {"kind": "attention", "spec_version": 1}}}]},
        {"stacks": [{"n_blocks": 1, "block": {"mixer": "attention"}, "spec_version": 2}]},
        {"layers": ["attention"], "head": {"kind": "language_model", "spec_version": 2}},
    ],
    ids=str,
)
def test_the_version_is_said_at_the_top_alone(keys):
    (message,) = messages(RackSpec, {"vocab_size": 8, "d_model": 16, "spec_version": SPEC_VERSION, **keys})
    assert "unknown key 'spec_version'" in message
