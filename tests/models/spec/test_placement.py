"""Placements as texts and lists: what each form stands for, and what is said of one that does not fit."""

import itertools

import pytest

from configs import ConfigError
from models import Slot, parse_placement, placement_text
from models.spec.placement import main_placement


def slots_of(*offers, half="mixer"):
    """Slots by their names, of which the last is the main one."""
    return tuple(Slot(layer, half, tuple(names.split()), names.split()[-1]) for layer, names in enumerate(offers))


SIX = slots_of(*["window gdn attention"] * 6)
MIXED = slots_of("gdn attention", "wide narrow", "gdn attention", "gdn attention", "gdn linear")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("attention, gdn*3, window, gdn", "a g g g w g"),
        ("gdn *2,gdn* 2 , gdn , gdn", "g g g g g g"),
        ("gdn*6, attention*0", "g g g g g g"),
        ("all:gdn", "g g g g g g"),
        ("all: window", "w w w w w w"),
        ("every:2:attention:gdn", "g a g a g a"),
        ("every:4:attention:gdn", "g g g a g g"),
        ("every:1:attention:gdn", "a a a a a a"),
        ("every:9:attention:gdn", "g g g g g g"),
        ("bookend:attention:gdn", "a g g g g a"),
        (["gdn"] * 5 + ["window"], "g g g g g w"),
        (("attention",) * 6, "a a a a a a"),
    ],
    ids=str,
)
def test_what_a_text_stands_for(value, expected):
    long = {"a": "attention", "g": "gdn", "w": "window"}
    assert parse_placement(value, SIX) == tuple(long[letter] for letter in expected.split())


@pytest.mark.parametrize(("n_slots", "expected"), [(1, "attention"), (2, "attention*2"), (3, "attention, gdn, attention")])
def test_bookends_of_few_slots(n_slots, expected):
    assert placement_text(parse_placement("bookend:attention:gdn", SIX[:n_slots])) == expected


def test_forms_count_the_slots_that_offer_their_names_and_leave_the_others_at_main():
    assert parse_placement("all:gdn", MIXED) == ("gdn", "narrow", "gdn", "gdn", "gdn")
    assert parse_placement("every:2:attention:gdn", MIXED[:4]) == ("gdn", "narrow", "attention", "gdn")
    assert parse_placement("bookend:attention:gdn", MIXED[:4]) == ("attention", "narrow", "gdn", "attention")
    assert parse_placement("all:wide", MIXED) == ("attention", "wide", "attention", "attention", "linear")


def test_a_text_comes_back():
    for placement in itertools.product(*(slot.names for slot in MIXED)):
        assert parse_placement(placement_text(placement), MIXED) == placement
    assert placement_text(("gdn", "gdn", "attention", "gdn")) == "gdn*2, attention, gdn"
    assert parse_placement("", ()) == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("attention, gdn*3", "'attention, gdn*3': 4 names for 6 searchable slots"),
        ([], "0 names for 6 searchable slots"),
        ("attention*5, gnd", "layer 5 has no 'gnd'; did you mean 'gdn'? Known: attention, gdn, window"),
        (["gdn"] * 2 + ["atention"] + ["gdn"] * 3, "layer 2 has no 'atention'; did you mean 'attention'?"),
        ("all:gnd", "'all:gnd': no slot has 'gnd'; did you mean 'gdn'?"),
        ("every:4:attention:lynear", "no slot has 'lynear'"),
        ("every:0:attention:gdn", "expected names as in 'attention, gdn*3', or all:NAME, every:N:NAME:REST"),
        ("every:x:attention:gdn", "expected names"),
        ("every:attention:gdn", "expected names"),
        ("al:gdn", "expected names"),
        ("bookend:attention", "expected names"),
        ("attention**6", "'attention**6' is neither a name nor name*count"),
        ("attention*", "'attention*' is neither a name nor name*count"),
        ("attention gdn", "'attention gdn' is neither a name nor name*count"),
        ("attention,,gdn", "'' is neither a name nor name*count"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told(value, text):
    with pytest.raises(ConfigError) as caught:
        parse_placement(value, SIX)
    assert text in str(caught.value)


def test_a_form_that_a_slot_cannot_follow_names_the_slot():
    with pytest.raises(ConfigError, match="layer 4 has no 'attention'; Known: gdn, linear"):
        parse_placement("every:4:attention:gdn", MIXED)
    with pytest.raises(ConfigError, match="channel mixer of layer 0 has no 'gdn'"):
        parse_placement("gdn", slots_of("wide narrow", half="mlp"))


def test_the_main_placement_is_the_main_choice_of_each():
    assert main_placement(MIXED) == ("attention", "narrow", "attention", "attention", "linear")
