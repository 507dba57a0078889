"""Tokenizers: what goes in comes out, and nothing of a text is taken for a separator."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from configs import ConfigError
from tasks import TASKS
from tasks.text.prepare import split_of
from tasks.text.tokens import Bpe, Bytes

TEXTS = [
    "plain words, twice words",
    "  leading, trailing  \n\n\t\r\n",
    "naïve ☃ 你好 😀 e\u0301",
    "\x00\x01\x7f <document> <|endoftext|> [SEP] Ġ Ċ",
    "",
    "def f(x):\n    return x ** 2  # 1234567\n",
]
WORDS = [f"the {word} of the {word}s and their {word}ing ".encode() * 3 for word in ("walk", "talk", "paint", "count", "jump")]


@pytest.fixture(scope="module")
def bpe():
    return Bpe.trained(WORDS, 275)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_encoded_is_decoded(bpe, text):
    for tokens in (Bytes(), bpe):
        (encoded,) = tokens.encode([text.encode()])
        assert tokens.decode(encoded) == text
        assert encoded.dtype == np.int64
        assert ((encoded >= 0) & (encoded < tokens.vocab_size - 1)).all()


def test_separators_and_halves_of_characters_can_be_decoded(bpe):
    for tokens in (Bytes(), bpe):
        first, second = tokens.encode([b"one", "☃".encode()])
        separator = [tokens.vocab_size - 1]
        assert tokens.decode(np.concatenate([separator, first, separator, second[:1]])) == "one\ufffd"


def test_pairs_make_texts_shorter(bpe):
    document = WORDS[0]
    assert len(bpe.encode([document])[0]) < len(document) / 2


def test_training_is_a_function_of_the_documents(bpe, monkeypatch):
    texts = {bpe.tokenizer.to_str()}
    for threads in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
        texts.add(Bpe.trained(iter(WORDS), 275).tokenizer.to_str())
    assert len(texts) == 1
    assert Bpe.trained(WORDS[:-1], 275).tokenizer.to_str() not in texts


def test_too_little_text_for_the_vocabulary_is_an_error_with_the_number_that_would_do():
    with pytest.raises(ConfigError, match=r"vocab_size 5000: .* have pairs for a vocabulary of [0-9]+ alone") as caught:
        Bpe.trained(WORDS, 5000)
    size = int(str(caught.value).split("vocabulary of ")[1].split()[0])
    assert Bpe.trained(WORDS, size).vocab_size == size


def test_a_tokenizer_is_trained_on_the_training_documents_alone(tmp_path):
    words = [word.decode() for word in WORDS]
    texts = [f"{words[i % 5]} {i}" for i in range(100)]
    kept = [text for text in texts if split_of(text.encode(), 0.2) == "train"]
    secret = next(text for i in range(999) if split_of((text := f"zqxzqx zqxzqx {i} " * 50).encode(), 0.2) == "validation")
    tokenizers = set()
    for name, documents in {"all": [*texts, secret], "kept": kept}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        options = {"validation_fraction": 0.2, "tokenizer": "bpe", "vocab_size": 310, "folder": str(tmp_path / name)}
        task = TASKS["text"](files=str(path), **options)
        assert task.decode(task.encode(secret)) == secret
        tokenizers.add(next((tmp_path / name).glob("text-*/tokenizer.json")).read_text())
    assert len(tokenizers) == 1


def test_windows_of_a_trained_vocabulary_read_as_the_text(tmp_path):
    texts = [f"{word.decode()} {i}" for i, word in enumerate(WORDS * 4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"tokenizer": "bpe", "vocab_size": 290, "seq_len": 1000, "validation_fraction": 0.0}
    task = TASKS["text"](files=str(path), folder=str(tmp_path / "tokens"), **options)
    examples = task.rows("train", 0, 0, task.n_rows("train"))
    read = [task.decode(row[targets >= 0]) for row, targets in zip(examples.inputs, examples.targets, strict=True)]
    assert sorted(read) == sorted(texts)
    assert (examples.inputs[:, 0] == 289).all()


FORK = """
import os
from tasks.text.tokens import Bpe
tokens = Bpe.trained([b"some words some words " * 50] * 20, 262)
tokens.encode([b"some words " * 100] * 50)
assert "TOKENIZERS_PARALLELISM" not in os.environ
if os.fork() == 0:
    tokens.encode([b"some words " * 100] * 50)
    os._exit(0)
os.wait()
"""


def test_a_fork_after_tokenising_is_not_complained_of():
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout + done.stderr == ""
