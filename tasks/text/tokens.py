"""Text to tokens and back: bytes, or a byte-level BPE trained on the corpus."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs import ConfigError
from configs.storage import write_text

N_BYTES = 256


class Tokens(Protocol):
    """Documents to tokens. `separator` stands after each document and `start` before; no text gives one of them."""

    vocab_size: int
    separator: int
    start: int

    @property
    def fingerprint(self) -> str:
        """What it is told from others by, in the name of a folder; for one trained on the files its kind is enough."""
        ...

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """The tokens [n] int64 of each document, which is UTF-8."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens [n]; half a character becomes U+FFFD, separators are left out."""
        ...


class Bytes:
    """Each byte is its own token."""

    vocab_size = N_BYTES + 1
    separator = start = N_BYTES
    fingerprint = "bytes"

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """As the contract says."""
        return [np.frombuffer(document, dtype=np.uint8).astype(np.int64) for document in documents]

    def decode(self, tokens: np.ndarray) -> str:
        """As the contract says."""
        return tokens[tokens < N_BYTES].astype(np.uint8).tobytes().decode(errors="replace")


class Bpe:
    """Pairs of bytes, merged by how often they are neighbours (Sennrich et al. 2016), within words as GPT-2 splits them."""

    fingerprint = "bpe"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.separator = self.start = tokenizer.get_vocab_size()
        self.vocab_size = self.separator + 1

    @classmethod
    def trained(cls, documents: Iterable[bytes], vocab_size: int) -> Bpe:
        """Train on documents; the same documents give the same tokenizer.

        The separator is none of the tokenizer's own special tokens: it would find those in the text as well.

        Raises:
            ConfigError: if the documents have too few pairs for the vocabulary.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
        )
        with _no_threads():
            tokenizer.train_from_iterator((document.decode() for document in documents), trainer)
        trained = cls(tokenizer)
        if trained.vocab_size != vocab_size:
            text = f"vocab_size {vocab_size}: the training documents have pairs for a vocabulary of {trained.vocab_size} alone"
            raise ConfigError(f"{text}; give that, or more text")
        return trained

    @classmethod
    def load(cls, path: Path) -> Bpe:
        """Read a saved tokenizer."""
        return cls(Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        """Write the tokenizer as `tokenizer.json`, which the tokenizers library reads."""
        write_text(path, self.tokenizer.to_str())

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """As the contract says."""
        return encode_with(self.tokenizer, documents)

    def decode(self, tokens: np.ndarray) -> str:
        """As the contract says."""
        return str(self.tokenizer.decode(tokens[tokens < self.separator].tolist()))


def encode_with(tokenizer: Tokenizer, documents: Sequence[bytes]) -> list[np.ndarray]:
    """The tokens [n] int64 of each document, without what a tokenizer puts around texts."""
    with _no_threads():
        encodings = tokenizer.encode_batch_fast([document.decode() for document in documents], add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


@contextmanager
def _no_threads() -> Iterator[None]:
    """Without the library's threads, after which it complains of every fork; unless the user's environment says otherwise."""
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
