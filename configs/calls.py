"""Reads `name(key=value, ...)`, the short text for something by name with some of its keys set."""

import re

from configs.errors import ConfigError
from configs.load import parse_override

_PIECE = re.compile(r""""[^"]*"|'[^']*'|.""", re.DOTALL)
_CLOSES = {")": "(", "]": "[", "}": "{"}


def parse_call(text: str) -> tuple[str, list[str]]:
    """`name(n_heads=4, pin={0: a})` as its name and the `key=value` texts in parentheses; a bare name has none.

    Brackets and quotes are YAML's: a comma inside them separates nothing.

    Raises:
        ConfigError: naming the character, counted from 1, that is wrong.
    """
    name, parenthesis, _ = text.partition("(")
    if not parenthesis:
        return text.strip(), []
    options, start = [], len(name) + 1
    opened: list[tuple[str, int]] = []
    for match in _PIECE.finditer(text, len(name)):
        piece, place = match[0], match.start()
        if piece in _CLOSES.values():
            opened.append((piece, place))
        elif piece in _CLOSES and opened.pop()[0] != _CLOSES[piece]:
            raise ConfigError(f"'{text}', character {place + 1}: this '{piece}' closes nothing")
        if not opened or (piece == "," and len(opened) == 1):
            options.append((start, text[start:place]))
            start = place + 1
        if not opened:
            break
    if opened:
        hint = "; in a YAML list in brackets, a text with a comma needs quotes" if opened == [("(", len(name))] else ""
        raise ConfigError(f"'{text}', character {opened[-1][1] + 1}: this '{opened[-1][0]}' is not closed{hint}")
    if rest := text[start:].strip():
        raise ConfigError(f"'{text}', character {text.index(rest, start) + 1}: nothing is expected after the ')'")
    return name.strip(), _checked(text, [(place, option) for place, option in options if option.strip()])


def _checked(text: str, options: list[tuple[int, str]]) -> list[str]:
    texts: dict[str, str] = {}
    for place, option in options:
        where = f"'{text}', character {place + 1 + len(option) - len(option.lstrip())}"
        key, equals, value = (word.strip() for word in option.partition("="))
        if not equals:
            raise ConfigError(f"{where}: expected key=value, got '{key}'")
        if key in texts:
            raise ConfigError(f"{where}: {key} is given twice")
        texts[key] = f"{key}={value}"
        try:
            parse_override(texts[key])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return list(texts.values())
