"""The task `text`: predict the next token of documents out of files."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from configs import ConfigError
from tasks.checks import check_integers, check_split
from tasks.permutation import permuted_run
from tasks.task import Examples, Split, Task
from tasks.text.corpus import STDLIB, find_files
from tasks.text.model_tokens import ModelTokenizer, model_tokens
from tasks.text.prepare import TOKENIZER_FILE, Recipe, prepare
from tasks.text.tokens import Bpe, Bytes, Tokens
from tasks.text.windows import Windows

TokenizerName = Literal["bytes", "bpe"]


@dataclass(frozen=True, kw_only=True)
class Text(Task):
    """The next token, everywhere, in windows of `seq_len` tokens that lie in one document each.

    The vocabulary is the tokenizer's (256 bytes; or `vocab_size - 1` tokens of a BPE trained on the training documents) and a
    separator, the last token, which stands before and after each document. In an epoch every token is asked once. A window at
    the end of a document is padded with zeros that are not asked; empty documents are left out.

    With the tokenizer of a trained model there is no token of ours: its own end of text stands after each document, and before
    it too, unless the tokenizer itself begins texts with a BOS, which then stands there, once. Names of special tokens within a
    document are plain text.

    A document is a plain file, a line of a `.jsonl` or `.ndjson` file, or a row of a `.parquet` file. Its split hangs on the hash
    of its text, so that copies of it are in the same one. Tokens are kept in memory-mapped files in `folder`, named by a
    fingerprint of all they depend on, the content of the files included; they are made at the first use, by one process while
    others wait.

    Options:
        vocab_size: null is the tokenizer's: 257 of `bytes`, and of a model the rows of its embedding. `bpe` needs a number.
        files: a path, a folder, a glob, or a list of these; `stdlib` stands for the Python sources of the standard library, and
            `english` for the topics of Python's help and the long docstrings of the standard library.
        field: the key of JSON objects, and the column of Parquet tables, that holds the text.
        tokenizer: `bytes`, `bpe`, or `{model: PATH}`, a folder with a `tokenizer.json` or a GGUF file.
        validation_fraction: the chance of a document to be in `validation`; `test` gets as much again.
        max_documents: take no more, ...
        max_bytes: ... and stop before the first document that goes beyond. Files are read in the order of their content's hash.
        folder: where tokens are kept; null is `$XDG_CACHE_HOME/mixrack`, or `~/.cache/mixrack`.
    """

    vocab_size: int | None = None  # type: ignore[assignment]  # as an option; of a task it is a number
    seq_len: int = 256
    files: str | tuple[str, ...] = STDLIB
    field: str = "text"
    tokenizer: TokenizerName | ModelTokenizer = "bytes"
    validation_fraction: float = 0.1
    max_documents: int | None = None
    max_bytes: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        check_integers(minimum=1, seq_len=self.seq_len)
        limits = {"max_documents": self.max_documents, "max_bytes": self.max_bytes}
        check_integers(minimum=1, **{name: value for name, value in limits.items() if value is not None})
        if isinstance(self.files, list):
            object.__setattr__(self, "files", tuple(self.files))
        names = self.files if isinstance(self.files, tuple) and self.files else (self.files,)
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"files must be a path, a folder, a glob or a list of these; got {self.files!r}")
        if not isinstance(self.field, str) or not self.field:
            raise ValueError(f"field must be the name of a column; got {self.field!r}")
        if self.folder is not None and not (isinstance(self.folder, str) and self.folder):
            raise ValueError(f"folder must be a path or null; got {self.folder!r}")
        if isinstance(self.tokenizer, dict):
            if self.tokenizer.keys() != {"model"} or not isinstance(self.tokenizer["model"], str):
                raise ValueError(f"tokenizer must be a name, or {{model: PATH}}; got {self.tokenizer!r}")
            object.__setattr__(self, "tokenizer", ModelTokenizer(**self.tokenizer))
        fraction = self.validation_fraction
        if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 <= fraction < 0.5:
            raise ValueError(f"validation_fraction must be a number with 0 <= validation_fraction < 0.5; got {fraction!r}")
        object.__setattr__(self, "vocab_size", self._checked_size())

    def _checked_size(self) -> int:
        size = self.vocab_size
        if size is not None:
            check_integers(minimum=1, vocab_size=size)
        if isinstance(self.tokenizer, ModelTokenizer):
            tokens = model_tokens(self.tokenizer.model)
            size = tokens.model_vocab_size if size is None else size
            if size < tokens.vocab_size:
                text = f"vocab_size must be at least {tokens.vocab_size} with the tokenizer of {self.tokenizer.model}"
                raise ValueError(f"{text}, which has so many tokens; got {size}")
            return size
        if self.tokenizer not in get_args(TokenizerName):
            names = ", ".join(get_args(TokenizerName))
            raise ValueError(f"tokenizer must be one of {names}, or {{model: PATH}}; got {self.tokenizer!r}")
        if self.tokenizer == "bpe":
            if size is None or size <= Bytes.vocab_size:
                raise ValueError(f"vocab_size must be over 257 with tokenizer bpe, a separator and the bytes; got {size}")
            return size
        if size not in (None, Bytes.vocab_size):
            raise ValueError(f"vocab_size must be 257 with tokenizer bytes, a separator and the bytes; got {size}")
        return Bytes.vocab_size

    @property
    def input_length(self) -> int:
        """As many positions as a window has."""
        return self.seq_len

    @property
    def answers_stand_ahead(self) -> bool:
        """The next token is asked."""
        return True

    def n_rows(self, split: Split) -> int:
        """As the contract of finite tasks says: windows; a ConfigError where the split has none."""
        return len(_windows(self, split))

    def rows(self, split: Split, seed: int, first: int, n_examples: int) -> Examples:
        """As the contract of finite tasks says."""
        windows = _windows(self, split)
        chosen, n_windows = [np.empty(0, dtype=np.int64)], len(windows)
        while n_examples:
            epoch, position = divmod(first, n_windows)
            n_here = min(n_examples, n_windows - position)
            chosen.append(permuted_run(position, n_here, n_windows, split, seed, epoch))
            first, n_examples = first + n_here, n_examples - n_here
        return windows.gather(np.concatenate(chosen))

    def windows(self, split: Split, numbers: np.ndarray) -> Examples:
        """The windows with the numbers [n], each from 0 to `n_rows(split) - 1`, in the order of the documents."""
        return _windows(self, split).gather(numbers)

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says: windows at random, with repetitions."""
        windows = _windows(self, split)
        return windows.gather(rng.integers(len(windows), size=n_examples))

    def data_fingerprint(self) -> str:
        """The fingerprint of the content of the files and of how it became tokens."""
        return _opened(self).fingerprint

    def encode(self, text: str) -> np.ndarray:
        """The tokens [n] int64 of a text, without separators."""
        return self._tokens().encode([text.encode()])[0]

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens [n]; half a character becomes U+FFFD, separators are left out."""
        return self._tokens().decode(tokens)

    def _tokens(self) -> Tokens:
        return _opened(self).tokens if (known := _known_tokens(self)) is None else known


def _known_tokens(task: Text) -> Tokens | None:
    """The tokenizer, where it does not have to be trained first."""
    if isinstance(task.tokenizer, ModelTokenizer):
        return model_tokens(task.tokenizer.model)
    return Bytes() if task.tokenizer == "bytes" else None


@dataclass(frozen=True)
class _Opened:
    windows: dict[str, Windows]
    tokens: Tokens
    fingerprint: str


@lru_cache(maxsize=8)
def _opened(task: Text) -> _Opened:
    """The tokens of the task's files, as they were when this process first asked."""
    options = ("field", "validation_fraction", "max_documents", "max_bytes")
    tokens = _known_tokens(task)
    name, size = (Bpe.fingerprint, cast("int", task.vocab_size)) if tokens is None else (tokens.fingerprint, tokens.vocab_size)
    recipe = Recipe(tokenizer=name, vocab_size=size, **{name: getattr(task, name) for name in options})
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    given = (task.files,) if isinstance(task.files, str) else task.files
    folder, shards = prepare(find_files(given), recipe, Path(task.folder) if task.folder else cache / "mixrack", tokens)
    tokens = Bpe.load(folder / TOKENIZER_FILE) if tokens is None else tokens
    windows = {split: Windows(found, task.seq_len, tokens.start) for split, found in shards.items()}
    return _Opened(windows, tokens, folder.name.removeprefix("text-"))


def _windows(task: Text, split: Split) -> Windows:
    check_split(split)
    windows = _opened(task).windows[split]
    if not len(windows):
        text = f"files: the {split} split of {task.files!r} is empty: a plain file is one document, and goes to one split whole"
        raise ConfigError(f"{text}; give more documents, or another validation_fraction (now {task.validation_fraction})")
    return windows
