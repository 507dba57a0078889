"""English prose that every CPython carries: the topics of its help, and what its standard library says of itself."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

from configs import ConfigError

SHORTEST = 200
"""Characters; shorter docstrings are mostly signatures and labels."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def prose(path: Path) -> Iterator[bytes]:
    """The documents of a source file, which is parsed and not run.

    `pydoc_data/topics.py` has one for each topic; of any other file all docstrings of at least `SHORTEST` characters, of the
    module, its classes and functions, are one, in the order of the source.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that a later Python will refuse
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last of a parser that is out of levels
        raise ConfigError(f"{path}: no source of this Python: {str(error) or 'too many levels'}") from None
    texts = _topics(tree) if path.parts[-2:] == ("pydoc_data", "topics.py") else ["\n\n".join(_docstrings(tree))]
    for text in texts:
        yield text.encode(errors="replace")  # a source can spell half a surrogate pair


def _topics(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()


def _docstrings(tree: ast.Module) -> list[str]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    found = [(getattr(node, "lineno", 0), ast.get_docstring(node) or "") for node in nodes]
    return [text for _, text in sorted(found, key=lambda each: each[0]) if len(text) >= SHORTEST]
