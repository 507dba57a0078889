"""Tokenizers out of the metadata of GGUF files: byte-level BPE by the name of its splits, and SentencePiece BPE by its scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from configs import ConfigError
from configs.gguf_header import read_header

TOKENIZER_KEYS = "tokenizer.ggml."

_NORMAL, _USER_DEFINED = 1, 4
"""Types of tokens. The others come from no text: no merge leads to them."""
_SPACE = "\u2581"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: dict[str, str | None] = {
    "gpt-2": None,
    "default": None,
    "smollm": r"\p{N}",
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
}
"""By `tokenizer.ggml.pre`: what is split off first, each match by itself."""
_SPLIT_BY_GPT2_TOO = ("gpt-2", "default", "smollm")


def tokenizer_metadata(path: Path) -> dict[str, Any]:
    """The values of all keys `tokenizer.ggml.*`, by what follows the prefix; ConfigError if the file is no GGUF, or damaged."""
    found = read_header(path).metadata
    return {key.removeprefix(TOKENIZER_KEYS): value for key, value in found.items() if key.startswith(TOKENIZER_KEYS)}


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `tokenizer_metadata` describes. Control tokens are found in no text, user-defined ones are.

    Raises:
        ConfigError: for a kind of tokenizer, or of splits, that is not known, and for metadata that are missing or at odds.
    """
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if (model := str(metadata.get("model"))) not in makers:
        raise ConfigError(f"{TOKENIZER_KEYS}model {model!r} is not known; known: {', '.join(makers)}")
    try:
        tokenizer = makers[model](metadata)
        kinds = metadata.get("token_type") or [_NORMAL] * len(metadata["tokens"])
        named = [token for token, kind in zip(metadata["tokens"], kinds, strict=True) if token and kind == _USER_DEFINED]
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in named])
    except KeyError as error:
        raise ConfigError(f"{TOKENIZER_KEYS}{error.args[0]} is missing") from None
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ConfigError(f"{TOKENIZER_KEYS}*: no tokenizer: {error}") from None
    return tokenizer


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether BOS stands before a text; files that do not say so are read as llama.cpp does."""
    unsaid = metadata.get("model") == "llama" or metadata.get("pre") == "llama-bpe"
    return bool(metadata.get("add_bos_token", unsaid))


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    pre = str(metadata.get("pre"))
    if pre not in _SPLITS:
        raise ConfigError(f"{TOKENIZER_KEYS}pre {pre!r} is not known; known: {', '.join(_SPLITS)}")
    vocabulary = {token: number for number, token in enumerate(metadata["tokens"])}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in metadata["merges"])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    split = _SPLITS[pre]
    first = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in _SPLIT_BY_GPT2_TOO)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_])
    if pre == "qwen2":  # what the model was trained with; llama.cpp leaves it out
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens, kinds = metadata["tokens"], metadata["token_type"]
    unknown = tokens[metadata.get("unknown_token_id", 0)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    scores = {token: score for token, score, kind in zip(tokens, metadata["scores"], kinds, strict=True) if kind == _NORMAL}
    model = models.BPE(vocabulary, _merges(scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    has_prefix = metadata.get("add_space_prefix", True)
    prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _merges(scores: Mapping[str, float]) -> Sequence[tuple[str, str]]:
    """All pairs of pieces that make a piece, the piece with the highest score first."""
    by_score = sorted(scores, key=lambda piece: -scores[piece])
    cuts = ((piece[:place], piece[place:]) for piece in by_score for place in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]
