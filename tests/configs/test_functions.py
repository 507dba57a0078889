"""Functions that a user gives: what they get under which name."""

from functools import partial

import pytest

from configs import ConfigError
from configs.functions import called_by_name

NAMES = ("task", "vocab_size", "max_length")
VALUES = {"task": "recall", "vocab_size": 16, "max_length": 8}


def in_order(task, vocab_size, max_length):
    return task, vocab_size, max_length


def in_another(max_length, task, vocab_size):
    return task, vocab_size, max_length


def by_keyword(*, vocab_size, max_length, task, **_):
    return task, vocab_size, max_length


def by_other_names(name, n_words, longest, /):
    return name, n_words, longest


def by_some_other_names(name, vocab_size, longest):
    return name, vocab_size, longest


class Model:
    """One that is made is a function too."""

    def __new__(cls, vocab_size, max_length, task):
        return task, vocab_size, max_length


@pytest.mark.parametrize(
    "function",
    [
        in_order,
        in_another,
        by_keyword,
        by_other_names,
        by_some_other_names,
        Model,
        partial(by_keyword, seed=1),
        lambda *given: given,
        lambda **given: (given["task"], given["vocab_size"], given["max_length"]),
    ],
)
def test_every_value_arrives_under_its_name(function):
    assert called_by_name(function, *NAMES)(**VALUES) == ("recall", 16, 8)


@pytest.mark.parametrize("function", [lambda task, vocab_size: None, lambda vocab_size, task, length: None, lambda a, b: None])  # noqa: ARG005
def test_what_takes_something_else_is_refused(function):
    with pytest.raises(ConfigError, match=r"must be a function of task, vocab_size and max_length; this one takes \("):
        called_by_name(function, *NAMES)
