"""The header of a GGUF file: its metadata, and what tensors there are and where; read with the care that a damaged file needs.

The package `gguf` has a reader too: it makes several objects of every token of the vocabulary (3 s and 160 MB for 49,152), and of
bytes that are not as they should be it raises whatever they lead to.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from configs import ConfigError
from configs.limits import LONGEST, LONGEST_ECHO, MOST_LEVELS, shortened

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers, in the words of `struct`."""
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: its shape, rows first, its type by GGML's number, and the byte of the file that it starts at."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GGUFHeader:
    """All that a file says before its weights."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> GGUFHeader:
    """The header of a file; ConfigError that names it, for what is no GGUF, damaged or cut off."""
    try:
        with path.open("rb") as file:
            return _header(_Bytes(file, path.stat().st_size))
    except FileNotFoundError:
        raise ConfigError(f"{path}: is missing") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a text that is no UTF-8 is one, too
        raise ConfigError(f"{path}: no GGUF file, or a damaged one: {error}") from None


class _Bytes:
    """The values of a file, one after the other; ValueError for what cannot be one."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._n_left, self.position = file, size, 0

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > self._n_left:
            raise ValueError(f"the header says more than the file has, at byte {self.position:,}")
        self._n_left -= n_bytes
        self.position += n_bytes
        return self._file.read(n_bytes)

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        form = f"<{count}{code}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def count(self, code: str = "Q") -> int:
        (value,) = self.numbers(code)
        if value > LONGEST:
            raise ValueError(f"{value:,} is too large for a count, at byte {self.position:,}")
        return int(value)

    def text(self) -> str:
        return self.take(self.count()).decode()

    def name(self) -> str:
        """A text that a message may repeat."""
        if not (name := self.text()).isprintable() or len(name) > LONGEST_ECHO:
            raise ValueError(f"{shortened(repr(name))} is no name of a value or a tensor")
        return name

    def value(self, kind: int, level: int = 0) -> Any:
        if level > MOST_LEVELS:
            raise ValueError(f"arrays in arrays, more than {MOST_LEVELS} levels")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.numbers(_code(kind))[0]
        (inner,), count = self.numbers("I"), self.count()
        if inner in (STRING, ARRAY):
            return [self.value(inner, level + 1) for _ in range(count)]
        return list(self.numbers(_code(inner), count))


def _code(kind: int) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"{kind} is no type of a value")
    return NUMBERS[kind]


def _header(file: _Bytes) -> GGUFHeader:
    if file.take(len(MAGIC)) != MAGIC:
        raise ValueError(f"it does not start with {MAGIC.decode()}")
    (version,) = file.numbers("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not read; {' and '.join(map(str, VERSIONS))} are, little-endian")
    n_tensors, n_values = file.count(), file.count()
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        name = file.name()
        if name in metadata:
            raise ValueError(f"{name} is there twice")
        metadata[name] = file.value(file.numbers("I")[0])
    stored: dict[str, StoredTensor] = {}
    for _ in range(n_tensors):
        name, n_dimensions = file.name(), file.count("I")
        if name in stored or n_dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {name}: " + ("is there twice" if name in stored else f"{n_dimensions} dimensions"))
        sizes = file.numbers("Q", n_dimensions)
        kind, offset = file.numbers("I")[0], file.numbers("Q")[0]
        stored[name] = StoredTensor(sizes[::-1], kind, offset)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment = {alignment}")
    start = -(-file.position // alignment) * alignment
    return GGUFHeader(metadata, {name: StoredTensor(each.shape, each.kind, start + each.start) for name, each in stored.items()})
