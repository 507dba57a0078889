"""The rules of the house, read off the sources: how full a room is, who imports whom, and that one name is one thing."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ENTRIES = {"search": 13, "models": 14}
"""How many files and folders the top of a package may have."""

FLOORS = {"launch": 3, "search": 2, "models": 1, "tasks": 1, "configs": 0}
"""Imports go from a higher floor to a lower one; models and tasks do not know each other."""

NAMED_TWICE = {
    **dict.fromkeys(("Block", "Rack", "Stack"), "the guide's, beside the modules that they are made of"),
    **dict.fromkeys(("Identity", "Stochastic", "Uniform"), "kinds of two registries: the class is named after the kind"),
    **dict.fromkeys(("run", "save_picture", "write_results"), "what every job's files offer under one name"),
    **dict.fromkeys(("pack", "unpack"), "what every format of stored weights offers"),
}
"""Public names that two modules may define, and why."""


@cache
def sources(root):
    """Every module of the product by its dotted name, as a syntax tree."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text("utf-8"))
        for package in FLOORS
        for path in sorted((root / package).rglob("*.py"))
    }


def imported(name, trees):
    """The modules that one imports, wherever in it: in functions and for type hints too."""
    for node in ast.walk(trees[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in trees)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import, which this test does not follow"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield from [each for each in (inside, node.module) if each in trees][:1]


def public_names(tree):
    """What a module defines at its top for others to use: classes, functions, constants."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def too_full(root):
    counts = {name: sum(each.suffix == ".py" or any(each.rglob("*.py")) for each in (root / name).iterdir()) for name in ENTRIES}
    return [f"{name}/ has {count} entries, more than {ENTRIES[name]}" for name, count in counts.items() if count > ENTRIES[name]]


def circles(root):
    trees = sources(root)
    try:
        TopologicalSorter({name: dict.fromkeys(imported(name, trees)) for name in trees}).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def upward(root):
    trees = sources(root)
    arrows = [(name, other) for name in trees for other in imported(name, trees)]
    floors = [[(module.partition(".")[0], FLOORS[module.partition(".")[0]]) for module in arrow] for arrow in arrows]
    return [
        f"{arrow[0]} -> {arrow[1]}"
        for arrow, ((package, floor), (other, below)) in zip(arrows, floors, strict=True)
        if package != other and floor <= below
    ]


def named_twice(root):
    places = defaultdict(set)
    for module, tree in sources(root).items():
        for name in public_names(tree):
            places[name].add(module)
    return [
        f"{name}: {', '.join(sorted(modules))}"
        for name, modules in places.items()
        if len(modules) > 1 and name not in NAMED_TWICE
    ]


def unexplained(root):
    firsts = {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in sources(root).items()}
    return [f"{name}: '{first}' says too little" for name, first in firsts.items() if len(first.split()) < 4]


RULES = (too_full, circles, upward, named_twice, unexplained)

GOOD = '"""Holds one thing of the house."""\n'
WRONG = [
    (too_full, {f"models/m{number}.py": GOOD for number in range(15)}, "models/ has 15 entries, more than 14"),
    (too_full, {f"search/m{number}/__init__.py": GOOD for number in range(14)}, "search/ has 14 entries, more than 13"),
    (
        circles,
        {"models/a.py": f"{GOOD}from models import b", "models/b.py": f"{GOOD}def f():\n    from models.a import x"},
        "models.a -> models.b -> models.a",
    ),
    (
        circles,
        {
            "tasks/a.py": f"{GOOD}if TYPE_CHECKING:\n    import tasks.b",
            "tasks/b/__init__.py": f"{GOOD}from tasks.a import A",
        },
        "tasks.a -> tasks.b -> tasks.a",
    ),
    (upward, {"models/a.py": f"{GOOD}import tasks.b", "tasks/b.py": GOOD}, "models.a -> tasks.b"),
    (upward, {"models/a.py": f"{GOOD}from search import b", "search/b.py": GOOD}, "models.a -> search.b"),
    (upward, {"configs/a.py": f"{GOOD}from tasks.b import B", "tasks/b.py": GOOD}, "configs.a -> tasks.b"),
    (named_twice, {"models/a.py": f"{GOOD}class Mode: ...", "search/b.py": f"{GOOD}Mode = str"}, "Mode: models.a, search.b"),
    (named_twice, {"tasks/a.py": f"{GOOD}A, B = 1, 2", "tasks/b.py": f"{GOOD}B: int = 2"}, "B: tasks.a, tasks.b"),
    (named_twice, {"launch/a.py": f"{GOOD}def go(): ...", "launch/b.py": f"{GOOD}def go(): ..."}, "go: launch.a, launch.b"),
    (unexplained, {"configs/a.py": '"""Reads."""'}, "configs.a: 'Reads.' says too little"),
    (unexplained, {"configs/a.py": "x = 1"}, "configs.a: '' says too little"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule):
    assert rule(ROOT) == []


@pytest.mark.parametrize(("broken", "files", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_house_that_breaks_a_rule_is_told_where(tmp_path, broken, files, message):
    for package in FLOORS:
        (tmp_path / package).mkdir()
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert {rule.__name__: rule(tmp_path) for rule in RULES if rule(tmp_path)} == {broken.__name__: [message]}


def test_private_and_allowed_names_may_be_defined_twice(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / f"models/{name}.py").write_text(f"{GOOD}_PRIVATE = 1\ndef pack(): ...\n__all__ = []")
    assert named_twice(tmp_path) == []
