"""Registries: a file dropped into a package is a kind, checked against its constructor."""

import sys
from typing import Literal

import pytest
from pydantic import ValidationError

from configs import ConfigError, Registry, Spec
from configs.registry import Part

MODULE = '''
"""A thing."""
from typing import Literal


class GreatThing:
    def __init__(self, d_model: int, *, width: int = 3, style: Literal["a", "b"] = "a", depth: int | None = None) -> None:
        self.d_model, self.width, self.style, self.depth = d_model, width, style, depth
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "dropped_things"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("dropped_things")]:
        del sys.modules[name]


@pytest.fixture
def things(package):
    (package / "great_thing.py").write_text(MODULE)
    return Registry("dropped_things", "thing", ("d_model", "max_length"))


def test_a_dropped_file_is_found(package):
    registry = Registry("dropped_things", "thing")
    assert list(registry) == []
    assert len(registry) == 0
    (package / "great_thing.py").write_text(MODULE)
    (package / "other.py").write_text("class Other:\n    pass\n")
    assert list(registry) == ["great_thing", "other"]
    assert registry["great_thing"].__name__ == "GreatThing"


def test_hyphens_are_underscores(things):
    assert things["great-thing"] is things["great_thing"]
    assert "great-thing" in things
    assert things.part("great-thing") == things.part({"kind": "great_thing"})
    assert things.part("great-thing").kind == "great_thing"


def test_unknown_kinds_suggest_the_nearest(things):
    with pytest.raises(ConfigError, match="unknown thing 'great_thin'; did you mean 'great_thing'\\? Known: great_thing"):
        things["great_thin"]
    assert "nothing" not in things
    assert 3 not in things


def test_a_part_is_what_the_constructor_takes_but_what_is_handed_down(things):
    part = things.part({"kind": "great_thing", "width": 5})
    assert part.to_dict() == {"kind": "great_thing", "width": 5, "style": "a", "depth": None}
    assert part.options() == {"width": 5, "style": "a", "depth": None}
    built = things.build(part, d_model=8, max_length=16)
    assert (built.d_model, built.width, built.style) == (8, 5, "a")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"kind": "great_thing", "d_model": 4}, "unknown key 'd_model'"),
        ({"kind": "great_thing", "widht": 4}, "did you mean 'width'"),
        ({"kind": "great_thing", "width": "wide"}, "valid integer"),
        ({"kind": "great_thing", "style": "c"}, "'a' or 'b'"),
    ],
)
def test_options_are_checked(things, value, text):
    with pytest.raises(ValidationError, match=text):
        things.part(value)


@pytest.mark.parametrize("value", [{"width": 3}, 7, ["great_thing"], {"kind": 3}, {"kind": None}])
def test_fields_need_a_kind(things, value):
    class Holder(Spec):
        thing: things.field() = None

    with pytest.raises(ValidationError, match="a thing needs a kind; Known: great_thing"):
        Holder(thing=value)


def test_fields_hold_parts_or_null_and_come_back(things):
    class Holder(Spec):
        thing: things.field() = None
        other: Literal["x"] = "x"

    assert Holder().thing is None
    spec = Holder(thing={"kind": "great-thing", "depth": 2})
    assert spec.to_dict() == {"thing": {"kind": "great_thing", "width": 3, "style": "a", "depth": 2}, "other": "x"}
    assert Holder(**spec.to_dict()) == spec
    assert Holder(thing="great_thing").fingerprint() != spec.fingerprint()
    with pytest.raises(ValidationError, match="unknown thing 'grate-thing'; did you mean 'great_thing'"):
        Holder(thing="grate-thing")


def test_registries_are_themselves(things):
    assert things != Registry("dropped_things", "thing", ("d_model", "max_length"))
    assert len({things, things}) == 1


GROUP = """
class Group:
    def __init__(self, d_model: int, *, members: dict, first: str = "a") -> None:
        self.d_model, self.members, self.first = d_model, members, first
"""


@pytest.fixture
def groups(package):
    (package / "great_thing.py").write_text(MODULE)
    (package / "group.py").write_text(GROUP)
    return Registry("dropped_things", "thing", ("d_model",), named_parts="members")


def test_a_part_may_hold_parts_by_name(groups):
    part = groups.part({"kind": "group", "members": {"b": "great-thing", "a": {"kind": "great_thing", "width": 5}, "none": None}})
    assert list(part.members) == ["b", "a", "none"]
    assert part.to_dict()["members"]["b"] == {"kind": "great_thing", "width": 3, "style": "a", "depth": None}
    assert groups.part(part.to_dict()) == part
    built = groups.build(part, d_model=8)
    assert [(name, each and (each.d_model, each.width)) for name, each in built.members.items()] == [
        ("b", (8, 3)),
        ("a", (8, 5)),
        ("none", None),
    ]


def test_parts_by_name_may_hold_parts_by_name(groups):
    inner = {"kind": "group", "members": {"x": "great_thing"}}
    built = groups.build(groups.part({"kind": "group", "members": {"inner": inner}}), d_model=8)
    assert built.members["inner"].members["x"].width == 3


def test_the_order_of_named_parts_counts(groups):
    first, second = (groups.part({"kind": "group", "members": dict.fromkeys(order, "great_thing")}) for order in ("ab", "ba"))
    assert first != second
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"a": "graet_thing"}, "did you mean 'great_thing'"),
        ({"a": {"kind": "great_thing", "widht": 1}}, "'width'"),
        (["a"], "mapping"),
    ],
)
def test_parts_by_name_are_checked(groups, members, text):
    with pytest.raises(ValidationError, match=text):
        groups.part({"kind": "group", "members": members})


@pytest.mark.usefixtures("things")
def test_modules_of_elsewhere_may_be_kinds_too(tmp_path):
    (tmp_path / "dropped_things_text.py").write_text("class DroppedThingsText:\n    pass\n")
    registry = Registry("dropped_things", "thing", also=("dropped_things_text",))
    assert list(registry) == ["dropped_things_text", "great_thing"]
    assert registry["dropped-things-text"].__name__ == "DroppedThingsText"
    assert type(registry.build(registry.part("dropped_things_text"))) is registry["dropped_things_text"]


def test_the_fields_of_a_base_are_in_every_part_and_no_constructor_sees_them(things):
    class Painted(Part):
        colour: str = "red"

    registry = Registry("dropped_things", "thing", ("d_model", "max_length"), base=Painted)
    part = registry.part({"kind": "great_thing", "colour": "blue", "width": 5})
    assert part.to_dict() == {"kind": "great_thing", "colour": "blue", "width": 5, "style": "a", "depth": None}
    assert part.options() == {"width": 5, "style": "a", "depth": None}
    assert registry.build(part, d_model=8).width == 5
    with pytest.raises(ValidationError, match="unknown key 'colour'"):
        things.part({"kind": "great_thing", "colour": "blue"})
