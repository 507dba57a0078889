"""The short text `name(key=value, ...)`."""

import pytest

from configs import ConfigError
from configs.calls import parse_call


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("attention", "attention", []),
        (" attention ", "attention", []),
        ("a()", "a", []),
        ("a(n=1)", "a", ["n=1"]),
        ("a(n=1, m=5e-4,)", "a", ["n=1", "m=5e-4"]),
        (" a ( n = 1 ,m= [1, 2] ) ", "a", ["n=1", "m=[1, 2]"]),
        ("a(n={x: [1, (2)], y: 3}, m=2)", "a", ["n={x: [1, (2)], y: 3}", "m=2"]),
        ("""a(n='x, y)', m="(", k=b=c)""", "a", ["n='x, y)'", 'm="("', "k=b=c"]),
        ("configs/x.yaml(place=all:gdn, stacks[0].n_blocks=2)", "configs/x.yaml", ["place=all:gdn", "stacks[0].n_blocks=2"]),
    ],
)
def test_names_and_options(text, name, options):
    assert parse_call(text) == (name, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a(n=1", "'a(n=1', character 2: this '(' is not closed; in a YAML list in brackets, a text with a comma needs quotes"),
        ("a(n=[1, 2", "'a(n=[1, 2', character 5: this '[' is not closed"),
        ("a(n=[1)", "'a(n=[1)', character 7: this ')' closes nothing"),
        ("a(n=1))", "'a(n=1))', character 7: nothing is expected after the ')'"),
        ("a(n=1) b", "'a(n=1) b', character 8: nothing is expected after the ')'"),
        ("a(n=1, m)", "'a(n=1, m)', character 8: expected key=value, got 'm'"),
        ("a(n=1, n = 2)", "'a(n=1, n = 2)', character 8: n is given twice"),
        ("a(=1)", "'a(=1)', character 3: override '=1': expected key=value"),
        ("a(n={b: 1, b: 2})", "the key 'b' is given twice"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_call(text)
    assert message in str(caught.value)
