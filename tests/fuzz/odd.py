"""Odd values, and trees and texts in which something is odd."""

import copy
import math
from collections.abc import Iterator

import yaml

VALUES = (
    -1, 0, 1, 2, 3, 7, 10**6, 2**31, 10**9, 10**15, 2**62, -(10**15), 10**30, 10**400,
    0.5, -0.5, 1.5, 1e-30, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf,
    True, False, None,
    "", " ", "x", "..", "../x", "a.b", "shared.sampler", "os:getcwd", "all:linear", "5", "1e999", "*", "[", "é\U0001f600", "a\nb",
    "x" * 5000, "0:" + "9" * 5000,
    [], [1], [[]], ["x"], [None], [1, 2, 3, 4, 5], [10**15], [True],
    {}, {"kind": "x"}, {"kind": "attention"}, {"kind": "stochastic"}, {"x": 1}, {"0": {}}, {"kind": None},
)  # fmt: skip


def odd_for(value, draw):
    """An odd value, mostly of the type of what it takes the place of: those of another type are soon refused."""
    kind = {bool: bool, int: int | float, float: int | float, str: str, list: list, dict: dict}.get(
        type(value), int | float | str
    )
    return draw.choice([each for each in VALUES if isinstance(each, kind)] if draw.random() < 0.75 else VALUES)


def places(tree, path=()) -> Iterator[tuple]:
    """The path of every value in a tree, but of the whole."""
    if isinstance(tree, dict | list):
        for key, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield (*path, key)
            yield from places(inner, (*path, key))


def with_value(tree, path, value):
    """The tree with another value at a path."""
    tree = copy.deepcopy(tree)
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return tree


def at(tree, path):
    """The value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def mutated_tree(tree, draw):
    """A tree in which parts are gone, doubled, exchanged, misspelt, wrapped, or replaced by something odd."""
    for _ in range(draw.randint(1, 3)):
        found = list(places(tree))
        if not found:
            return {}
        path, other = draw.choice(found), draw.choice(found)
        match draw.randrange(6):
            case 0:
                tree = copy.deepcopy(tree)
                del at(tree, path[:-1])[path[-1]]
            case 1:
                tree = with_value(tree, path, copy.deepcopy(at(tree, other)))
            case 2 if isinstance(at(tree, path[:-1]), dict):
                tree = copy.deepcopy(tree)
                key, place = str(path[-1]), at(tree, path[:-1])
                place[key[::-1] if draw.random() < 0.5 else key[:-1] + "x"] = place.pop(path[-1])
            case 3:
                tree = with_value(tree, path, draw.choice([[at(tree, path)], {"x": at(tree, path)}, [at(tree, path)] * 3]))
            case _:
                tree = with_value(tree, path, odd_for(at(tree, path), draw))
    return tree


PIECES = (
    ":", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: *a", "!!int ", "!!binary ", "\t", "'", '"', "#", "%", "|\n", ">\n",
    "? ",
    "---\n", "\\", "\ufeff", "é", "9" * 5000, "[" * 200, "{a: " * 100, "\n\n", "!!python/name:os.system ", ",", "@",
    "`", "~",
    '"\\0"', '"\\ud800"', "2020-13-45", "!!timestamp x", "0x", "1_0", "1e400", "=", "on", ": : :",
)  # fmt: skip


def mutated_text(text, draw):
    """YAML in which some characters are gone, doubled, or stand beside others that mean something."""
    for _ in range(draw.randint(1, 4)):
        place, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        end = min(end, place + draw.choice((1, 5, 50)))
        piece = draw.choice((draw.choice(PIECES), text[place:end] * draw.choice((0, 2, 20))))
        text = text[:place] + piece + text[end if draw.random() < 0.5 else place :]
    return text


def mutated_override(tree, draw):
    """`key=value`, mostly of a key that is there."""
    path = draw.choice(list(places(tree)))
    key = ""
    for step in path:
        key += f"[{step}]" if isinstance(step, int) else f'["{step}"]' if "." in str(step) else f"{'.' if key else ''}{step}"
    value = odd_for(at(tree, path), draw)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
    match draw.randrange(8):
        case 0:
            return mutated_text(f"{key}={text}", draw)
        case 1:
            return f"{key}.x.y={text}"
        case 2:
            return f"{key}[{draw.choice((-1, 0, 3, 10**6, 10**30))}]={text}"
        case 3:
            return f"{'.'.join(['a'] * draw.choice((2, 60, 70, 3000)))}={text}"
        case _:
            return f"{key}={text}"
