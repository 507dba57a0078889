"""What a GGUF file says of its tokenizer; the metadata alone are read, in a fraction of what the package `gguf` takes."""

import mmap
import struct
from pathlib import Path
from typing import Any

from configs import ConfigError

TOKENIZER_KEYS = "tokenizer.ggml."

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""What struct calls the format's types (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
_STRING, _ARRAY = 8, 9


def tokenizer_metadata(path: Path) -> dict[str, Any]:
    """The values of all keys `tokenizer.ggml.*`, by what follows the prefix.

    Raises:
        ConfigError: naming the file, if it cannot be read, is no GGUF or is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _Metadata(content).read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, struct.error, RecursionError) as error:
        raise ConfigError(f"{path}: no GGUF file, or damaged: {error}") from None
    return {key.removeprefix(TOKENIZER_KEYS): value for key, value in found.items() if key.startswith(TOKENIZER_KEYS)}


class _Metadata:
    """A place in the file, which moves on with all that is read."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._place, self._order = content, 0, "<"

    def read(self) -> dict[str, Any]:
        magic, (version,) = self._bytes(4), self._values("I", 1)
        if magic != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if not version & 0xFFFF:  # written by a big-endian machine
            self._order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format is not read; 2 and 3 are")
        _, n_keys = self._values("Q", 2)
        return {self._string(): self._value(self._values("I", 1)[0]) for _ in range(n_keys)}

    def _bytes(self, n: int) -> bytes:
        found = self._content[self._place : self._place + n]
        if len(found) != n:
            raise ValueError("it ends within its metadata")
        self._place += n
        return found

    def _values(self, kind: str, n: int) -> tuple[Any, ...]:
        return struct.unpack(f"{self._order}{n}{kind}", self._bytes(n * struct.calcsize(f"{self._order}{kind}")))

    def _string(self) -> str:
        return self._bytes(self._values("Q", 1)[0]).decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            (inner,), (n,) = self._values("I", 1), self._values("Q", 1)
            return list(self._values(_SCALARS[inner], n)) if inner in _SCALARS else [self._value(inner) for _ in range(n)]
        if kind not in _SCALARS:
            raise ValueError(f"it has a value of the unknown type {kind}")
        return self._values(_SCALARS[kind], 1)[0]
