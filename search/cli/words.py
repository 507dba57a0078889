"""What is wrong with the words of a command line, and what to write instead."""

from collections.abc import Collection, Sequence
from pathlib import Path

from configs import ConfigError
from configs.errors import known_names, nearest_name
from configs.limits import shortened

SPELT = "settings are written key=value, in one word"


def check_command(words: Sequence[str], known: Collection[str], prog: str) -> None:
    """ConfigError unless the first word is a command; what a dash begins is argparse's."""
    if not words or words[0] in known or words[0] in ("-h", "--help"):
        return
    first = words[0]
    if first.startswith("-"):
        raise ConfigError(
            f"{prog}: the command comes first, then '{shortened(first)}'; {SPELT}. Known: {', '.join(sorted(known))}"
        )
    if Path(first).suffix in (".yaml", ".yml", ".json"):
        raise ConfigError(f"{prog}: a command comes before the file: {prog} supernet {first}. Known: {', '.join(sorted(known))}")
    elsewhere = f"; it is a command of python -m search: python -m search {' '.join(words)}" if first in TOOLS else ""
    raise ConfigError(f"{prog}: unknown command '{shortened(first)}'{elsewhere or '; ' + known_names(first, known)}")


TOOLS = ("check", "show", "import", "kernels", "schema")
"""The commands that run nothing, of which there is no form on Ray."""


def unknown_words(words: Sequence[str], options: Collection[str]) -> ConfigError:
    """What to write for words that a command does not take, the first of them; `options` are those that it has."""
    first, *rest = words
    if first.startswith("-"):
        name, equals, value = first.lstrip("-").partition("=")
        value = value if equals else next((word for word in rest if not word.startswith("-")), "VALUE")
        nearest = nearest_name(f"--{name}", [option for option in options if option.startswith("--")])
        if nearest is not None:
            return ConfigError(f"unknown option {shortened(first)}; did you mean {nearest}?")
        return ConfigError(f"unknown option {shortened(first)}; {SPELT}: {name.replace('-', '_')}={shortened(value)}")
    values = [word for word in rest if word != "="]
    if first.isidentifier() and values:
        return ConfigError(f"'{shortened(' '.join(words))}': {SPELT}: {first}={values[0]}")
    return ConfigError(f"'{shortened(first)}': one word too many; {SPELT}")
