"""The tokenizer of a trained model, out of its folder or its GGUF file: data alone is read, and no code is run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict
from tokenizers import Tokenizer

from configs import ConfigError
from configs.trained_model import model_path
from tasks.text.gguf_tokenizer import TOKENIZER_KEYS, adds_bos, gguf_tokenizer, tokenizer_metadata
from tasks.text.tokens import encode_with

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>")
"""What ends a document; the EOS token of a model for chats is often the end of a turn."""
_TOKENIZER, _CONFIG, _GENERATION = "tokenizer.json", "config.json", "generation_config.json"
_NAMES = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class ModelTokenizer:
    """The option: the tokenizer of the model in a folder as Hugging Face writes it, or in a GGUF file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: str


class ModelTokens:
    """What a trained model was trained on, with its own token between documents.

    The name of a special token in a text is plain text: it is not looked for. What could still give such a token is a vocabulary
    whose own merges lead to it; those of byte-level BPE and SentencePiece BPE do not. Tokens that were added to a vocabulary
    without being special (runs of spaces, say) are found, as the model had them.
    """

    def __init__(self, tokenizer: Tokenizer, *, separator: int, start: int, model_vocab_size: int | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.tokenizer, self.separator, self.start = tokenizer, separator, start
        added = [number for number, token in tokenizer.get_added_tokens_decoder().items() if not token.special]
        # Special tokens that no text gives may lie beyond the embedding: Gemma 3 has one for images.
        self.vocab_size = 1 + max(separator, start, *added, *tokenizer.get_vocab(with_added_tokens=False).values())
        self.model_vocab_size = model_vocab_size or self.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """Of all that tokens depend on, wherever the files lie."""
        content = json.dumps([self.tokenizer.to_str(), self.separator, self.start])
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """As the contract says."""
        return encode_with(self.tokenizer, documents)

    def decode(self, tokens: np.ndarray) -> str:
        """As the contract says."""
        kept = tokens[(tokens != self.separator) & (tokens != self.start)]
        return str(self.tokenizer.decode(kept.tolist(), skip_special_tokens=False))


def model_tokens(path: str) -> ModelTokens:
    """The tokenizer at a path, as it is now.

    Raises:
        ConfigError: naming the file, for what is missing, damaged or not known.
    """
    place = model_path(path)
    names = (_TOKENIZER, _CONFIG, _GENERATION, *_NAMES)
    files = [place / name for name in names] if place.is_dir() else [place]
    if not files[0].is_file():
        given = "is no file of a folder" if place.is_dir() else "is neither a model's folder nor a GGUF file"
        raise ConfigError(f"tokenizer: {files[0]}: {given}")
    stamps = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())
    try:
        return _loaded(place.absolute(), stamps)
    except ConfigError as error:
        raise ConfigError(f"tokenizer: {error}") from None


@lru_cache(maxsize=4)
def _loaded(place: Path, _stamps: tuple[tuple[int, int], ...]) -> ModelTokens:
    return _of_folder(place) if place.is_dir() else _of_gguf(place)


def _of_gguf(path: Path) -> ModelTokens:
    metadata = tokenizer_metadata(path)
    try:
        tokenizer = gguf_tokenizer(metadata)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    n_tokens = len(metadata["tokens"])
    known = [tokenizer.token_to_id(name) for name in END_OF_TEXT]
    found = [number for number in known if number is not None]

    def number_of(key: str) -> int:
        if not isinstance(number := metadata.get(key), int) or not 0 <= number < n_tokens:
            raise ConfigError(f"{path}: {TOKENIZER_KEYS}{key} must be one of {n_tokens} tokens; it is {number}")
        return number

    separator = found[0] if found else number_of("eos_token_id")
    start = number_of("bos_token_id") if adds_bos(metadata) else separator
    return ModelTokens(tokenizer, separator=separator, start=start, model_vocab_size=n_tokens)


def _of_folder(folder: Path) -> ModelTokens:
    try:
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
        start = _first_added(tokenizer)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ConfigError(f"{folder / _TOKENIZER}: no tokenizer: {error}") from None
    config = _object(folder / _CONFIG)
    size = config.get("vocab_size", _inner(config).get("vocab_size"))
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ConfigError(f"{folder / _CONFIG}: vocab_size must be a positive integer; it is {size!r}")
    separator = _end_of_text(folder, tokenizer, config)
    return ModelTokens(tokenizer, separator=separator, start=separator if start is None else start, model_vocab_size=size)


def _end_of_text(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> int:
    named = [_object(folder / name).get("eos_token") for name in _NAMES]
    texts = [text.get("content") if isinstance(text, dict) else text for text in named]
    numbers = [tokenizer.token_to_id(text) for text in (*END_OF_TEXT, *texts) if isinstance(text, str)]
    for given in (_object(folder / _GENERATION), config, _inner(config)):
        ids = given.get("eos_token_id")
        numbers.extend(ids[:1] if isinstance(ids, list) else [ids])
    found = next((number for number in numbers if number is not None), None)
    if not isinstance(found, int) or isinstance(found, bool) or found not in tokenizer.get_vocab().values():
        where = ", ".join((*_NAMES, _GENERATION, _CONFIG))
        raise ConfigError(f"{folder}: no token that ends a text: neither one of {', '.join(END_OF_TEXT)} nor an EOS in {where}")
    return found


def _first_added(tokenizer: Tokenizer) -> int | None:
    """The special token that the tokenizer itself puts before a text, or None."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    return whole[0] if len(whole) > len(plain) and whole[1 : 1 + len(plain)] == plain else None


def _inner(config: dict[str, Any]) -> dict[str, Any]:
    """The part on text of a model that sees too."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else {}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: a JSON object is expected")
    return found
