"""Tokenizers of trained models: against transformers and dumb loops, and what stands around documents."""

import json
import shutil
from collections import Counter
from importlib import import_module
from inspect import signature
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from configs import ConfigError
from tasks import TASKS
from tasks.text.gguf_tokenizer import tokenizer_metadata
from tasks.text.model_tokens import model_tokens
from tasks.text.text import _opened
from tasks.text.tokens import Bpe

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "def area(x1, y23):\n    return 12345 * x1\n\t\t678  # don't, WE'LL\r\n\r\n  ",
    "naïve ☃ 你好 😀 e\u0301 ½ ٣٤",
    "a <|endoftext|> and <|im_end|><s> </s>",
    " leading and trailing ",
]
PIECES = ["▁", "a", "b", "c", "s", "<", ">", "ab", "▁a", "bc", "▁ab", "abc", "▁▁", "aa", "aaa", "bca", "1", "2", "12", "\n"]


@pytest.fixture(scope="module")
def trained():
    """The vocabulary and merges of a BPE."""
    documents = [text.encode() * 3 for text in TEXTS] + [b"return 12345 don't we'll 678 " * 9]
    model = json.loads(Bpe.trained(documents, 330).tokenizer.to_str())["model"]
    return [*SPECIAL, *model["vocab"]], [tuple(merge) for merge in model["merges"]]


@pytest.fixture
def write(tmp_path):
    """Writes a GGUF file with these metadata."""

    def write_file(name="model.gguf", *, pre="gpt-2", model="gpt2", endianess=gguf.GGUFEndian.LITTLE, **values):
        writer = gguf.GGUFWriter(tmp_path / name, "llama", endianess=endianess)
        writer.add_array("llama.some", [[1, 2], [3]])
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        for key, value in values.items():
            getattr(writer, f"add_{key}")(value)
        writer.add_chat_template("{{ messages }}")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return str(tmp_path / name)

    return write_file


@pytest.fixture
def write_bpe(write, trained):
    tokens, merges = trained
    kinds = [CONTROL] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL))
    basis = {"token_list": tokens, "token_types": kinds, "token_merges": [" ".join(merge) for merge in merges]}
    return lambda **values: write(**{**basis, "eos_token_id": 2, "bos_token_id": 1, **values})


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def check_same(path, theirs):
    ours = model_tokens(path)
    for text in TEXTS:
        (encoded,) = ours.encode([text.encode()])
        assert encoded.tolist() == theirs(text)
        assert ours.decode(encoded) == text


@pytest.mark.parametrize(("pre", "name"), [("gpt-2", "GPT2Tokenizer"), ("default", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer")])
def test_byte_level_files_are_read_as_transformers_reads_the_model(write_bpe, trained, pre, name):
    tokens, merges = trained
    theirs = getattr(transformers, name)(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    ours = model_tokens(write_bpe(pre=pre))
    for text in TEXTS:
        (encoded,) = ours.encode([text.encode()])
        assert encoded.tolist() == ids(theirs, text)
    assert ours.decode(ours.encode([TEXTS[0].encode()])[0]) == TEXTS[0]


def test_smollm_splits_digits_before_bytes(write_bpe, trained):
    tokens, merges = trained
    theirs = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    path = write_bpe(pre="smollm")
    check_same(path, lambda text: theirs.encode(text).ids)
    ours = model_tokens(path)
    (encoded,) = ours.encode([b"x\n\t\t678   12345"])
    pieces = [tokens[number] for number in encoded]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == list("67812345")
    assert "".join(pieces) == "xĊĉĉ678ĠĠĠ12345"
    assert (
        model_tokens(write_bpe(name="b.gguf")).encode([b"return 12345"])[0].tolist() != ours.encode([b"return 12345"])[0].tolist()
    )


def test_llama_splits_three_digits_and_takes_whole_words(write_bpe, trained):
    tokens, merges = trained
    converters = import_module("transformers.convert_slow_tokenizer")  # as an attribute it may be the function of that name
    pattern = signature(converters.TikTokenConverter).parameters["pattern"].default
    theirs = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=True))
    split, bytes_ = pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    path = write_bpe(pre="llama-bpe")
    check_same(path, lambda text: theirs.encode(text).ids)
    assert model_tokens(path).start == 1, "files of Llama 3 that say nothing of BOS have one"


def by_score(text, scores):
    """Merges the neighbours whose piece has the highest score, the first of equals, until none is left."""
    pieces = list(text)
    while True:
        pairs = [(scores.get(left + right, -np.inf), -i) for i, (left, right) in enumerate(pairwise(pieces))]
        best, place = max(pairs, default=(-np.inf, 0))
        if best == -np.inf:
            return pieces
        pieces[-place : -place + 2] = ["".join(pieces[-place : -place + 2])]


@pytest.fixture
def write_pieces(write):
    """A SentencePiece model: the order of the scores is not the order of the pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "\n\n"]
    scores = [0.0] * 259 + [-float(7 * i % 20) for i in range(len(PIECES))] + [-1000.0]
    kinds = [2, CONTROL, CONTROL, *[BYTE] * 256, *[1] * len(PIECES), USER_DEFINED]
    basis = {"token_list": tokens, "token_scores": scores, "token_types": kinds, "unk_token_id": 0}
    return lambda **values: write(**{**basis, "model": "llama", "pre": "default", "eos_token_id": 2, "bos_token_id": 1, **values})


@pytest.mark.parametrize("has_prefix", [False, True, None])
def test_pieces_are_merged_by_their_scores(write_pieces, rng, has_prefix):
    path = write_pieces(**({} if has_prefix is None else {"add_space_prefix": has_prefix}))
    tokens, scores = (tokenizer_metadata(Path(path))[key] for key in ("tokens", "scores"))
    known = dict(zip(PIECES, scores[259:], strict=False))
    ours = model_tokens(path)
    for text in ["".join(rng.choice(list("abc 12s<>"), size=40)) for _ in range(60)] + [" a", "", "<s>a</s>", "ab  ab"]:
        (encoded,) = ours.encode([text.encode()])
        assert ours.decode(encoded) == text
        prefixed = text if has_prefix is False or not text else f" {text}"
        pieces = by_score(prefixed.replace(" ", "▁"), known)
        expected = [
            each for piece in pieces for each in ([piece] if piece in known else [f"<0x{b:02X}>" for b in piece.encode()])
        ]
        assert [tokens[number] for number in encoded] == expected


def test_what_pieces_lack_is_bytes_and_user_defined_tokens_are_found(write_pieces):
    path = write_pieces(add_space_prefix=False)
    ours = model_tokens(path)
    tokens = tokenizer_metadata(Path(path))["tokens"]
    (encoded,) = ours.encode(["a☃\n\n\n".encode()])
    assert [tokens[number] for number in encoded] == ["a", "<0xE2>", "<0x98>", "<0x83>", "\n\n", "\n"]
    assert ours.decode(encoded) == "a☃\n\n\n"
    assert ours.start == 1, "SentencePiece files that say nothing of BOS have one"
    assert model_tokens(write_pieces(name="b.gguf", add_bos_token=False)).start == 2


def test_the_package_gguf_reads_the_same_metadata(write_bpe, trained):
    path = write_bpe(add_bos_token=True)
    ours = tokenizer_metadata(Path(path))
    fields = gguf.GGUFReader(path).fields
    theirs = {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.ggml.")}
    assert {f"tokenizer.ggml.{name}": value for name, value in ours.items()} == theirs
    assert ours["tokens"] == trained[0]


def test_what_is_no_file_of_a_tokenizer_is_one_line_that_says_so(write_bpe, write, trained, tmp_path):
    whole = Path(write_bpe()).read_bytes()
    broken = {
        "torn.gguf": (whole[: len(whole) // 2], "no GGUF file, or a damaged one: the header says more than the file has"),
        "other.gguf": (b"GGML" + whole[4:], "no GGUF file, or a damaged one: it does not start with GGUF"),
        "empty.gguf": (b"", "no GGUF file, or a damaged one: "),
        "old.gguf": (whole[:4] + b"\1" + whole[5:], "version 1 is not read"),
    }
    for name, (content, message) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"^tokenizer: {tmp_path}/{name}: .*{message}"):
            model_tokens(str(tmp_path / name))
    wrong = {
        "pre 'other' is not known; known: gpt-2, default, smollm, llama-bpe, qwen2": {"pre": "other"},
        "model 'bert' is not known; known: gpt2, llama": {"model": "bert"},
        "eos_token_id must be one of .* tokens; it is 99999": {"eos_token_id": 99999, "token_list": ["x", *trained[0][1:]]},
    }
    for message, values in wrong.items():
        with pytest.raises(ConfigError, match=rf"tokenizer: .*/b\.gguf: tokenizer\.ggml\.{message}"):
            model_tokens(write_bpe(name="b.gguf", **values))
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.tokens is missing"):
        model_tokens(write(name="c.gguf"))
    Tokenizer(models.WordLevel({"word": 0}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"tokenizer: .*/tokenizer\.json: no tokenizer: .*Missing \[UNK\]"):
        model_tokens(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="neither a model's folder nor a GGUF file"):
        model_tokens(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"tokenizer: .*/tokenizer\.json: is no file of a folder"):
        model_tokens(str(tmp_path))


@pytest.fixture
def folder(tmp_path, trained):
    """A model's folder as transformers writes it, whose tokenizer begins texts with a BOS."""
    tokens, merges = trained
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|im_end|>"}
    vocabulary = {token.replace("<|endoftext|>", "<other>"): i for i, token in enumerate(tokens)}
    tokenizer = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, **names)
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 352, "eos_token_id": 7}))
    return tmp_path / "model", tokenizer


def test_a_folder_is_read_as_transformers_reads_it_without_its_special_tokens(folder):
    path, tokenizer = folder
    assert tokenizer("a")["input_ids"][0] == 1
    check_same(str(path), lambda text: ids(tokenizer, text))
    ours = model_tokens(str(path))
    assert (ours.start, ours.separator, ours.model_vocab_size) == (1, 2, 352)


def test_the_end_of_a_text_is_the_vocabularys_own_or_the_named_one(folder, write_bpe, trained):
    path, _ = folder
    saved = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**saved, "eos_token": {"content": "<other>"}}))
    assert model_tokens(str(path)).separator == 0
    (path / "tokenizer_config.json").unlink()
    (path / "special_tokens_map.json").unlink(missing_ok=True)
    assert model_tokens(str(path)).separator == 7
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    assert model_tokens(str(path)).separator == 5
    for number in (400, -1, 2**40, True):
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": number}))
        with pytest.raises(ConfigError, match="no token that ends a text"):
            model_tokens(str(path))
    assert model_tokens(write_bpe()).separator == 0, "and not the end of a turn, 2"
    assert model_tokens(write_bpe(name="b.gguf", token_list=["other", *trained[0][1:]])).separator == 2
    assert model_tokens(write_bpe(name="c.gguf", token_list=["<eos>", *trained[0][1:]])).separator == 0


def task_of(tmp_path, model, **options):
    texts = [f"{text} {i}" for i in range(4) for text in TEXTS]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    places = {"files": str(tmp_path / "corpus.jsonl"), "folder": str(tmp_path / "tokens")}
    return TASKS["text"](
        tokenizer={"model": str(model)}, **places, **{"validation_fraction": 0.0, "seq_len": 64, **options}
    ), texts


def test_documents_stand_between_the_models_own_tokens(folder, tmp_path, write_bpe):
    for model, start, separator in [(folder[0], 1, 2), (write_bpe(), 0, 0), (write_bpe(name="b.gguf", add_bos_token=True), 1, 0)]:
        task, texts = task_of(tmp_path, model, seq_len=200)
        examples = task.rows("train", 0, 0, task.n_rows("train"))
        assert (examples.inputs[:, 0] == start).all()
        rows = [row[row >= 0] for row in examples.targets]
        assert all(row[-1] == separator and not np.isin(row[:-1], [start, separator]).any() for row in rows)
        assert Counter(task.decode(row) for row in rows) == Counter(texts)
        assert task.decode(task.encode(texts[0])) == texts[0]
        assert (examples.inputs[examples.targets < 0] == 0).all()


def test_shards_are_named_by_what_the_tokenizer_is(folder, tmp_path):
    path, _ = folder
    first, _ = task_of(tmp_path, path)
    moved = shutil.copytree(path, tmp_path / "moved")
    assert task_of(tmp_path, moved)[0].data_fingerprint() == first.data_fingerprint()
    (moved / "config.json").write_text(json.dumps({"vocab_size": 352, "written_by": "another version"}))
    assert task_of(tmp_path, moved, seq_len=65)[0].data_fingerprint() == first.data_fingerprint()
    content = json.loads((moved / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (moved / "tokenizer.json").write_text(json.dumps(content))
    assert task_of(tmp_path, moved, seq_len=66)[0].data_fingerprint() != first.data_fingerprint()
    _opened.cache_clear()
    assert len(list((tmp_path / "tokens").glob("text-*"))) == 2


def test_the_vocabulary_is_the_models_or_a_given_one_that_is_large_enough(folder, tmp_path, trained):
    path, _ = folder
    n_tokens = len(trained[0])
    assert task_of(tmp_path, path)[0].vocab_size == 352
    assert task_of(tmp_path, path, vocab_size=n_tokens)[0].vocab_size == n_tokens
    message = f"vocab_size must be at least {n_tokens} with the tokenizer of {path}, which has so many tokens; got 300"
    with pytest.raises(ValueError, match=message):
        task_of(tmp_path, path, vocab_size=300)
    (path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 400}}))
    assert task_of(tmp_path, path)[0].vocab_size == 400
    (path / "config.json").unlink()
    assert task_of(tmp_path, path)[0].vocab_size == n_tokens
    (path / "config.json").write_text(json.dumps({"vocab_size": "many"}))
    with pytest.raises(ConfigError, match="vocab_size must be a positive integer; it is 'many'"):
        task_of(tmp_path, path)


def test_special_tokens_beyond_the_embedding_are_no_tokens_of_a_text(folder, tmp_path):
    path, tokenizer = folder
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(path)
    n_tokens = len(tokenizer) - 1
    (path / "config.json").write_text(json.dumps({"vocab_size": n_tokens}))
    task, _ = task_of(tmp_path, path)
    assert task.vocab_size == n_tokens
    assert (task.encode("an <image>") < n_tokens).all()
    assert task.decode(task.encode("an <image>")) == "an <image>"


def test_the_option_is_hashed_and_saved_as_plain_values(folder):
    path, _ = folder
    part = TASKS.part({"kind": "text", "tokenizer": {"model": str(path)}})
    assert json.loads(json.dumps(part.to_dict()))["tokenizer"] == {"model": str(path)}
    assert TASKS.part(part.to_dict()) == part
    built, again = TASKS.build(part), TASKS.build(TASKS.part(part.to_dict()))
    assert built == again == TASKS["text"](tokenizer={"model": str(path)})
    assert hash(built) == hash(again)
    with pytest.raises(ValueError, match="modle"):
        TASKS.part({"kind": "text", "tokenizer": {"modle": str(path)}})
    for wrong in ({"modle": "a"}, {"model": 3}, {"model": "a", "kind": "b"}):
        with pytest.raises(ValueError, match=r"tokenizer must be a name, or \{model: PATH\}"):
            TASKS["text"](tokenizer=wrong)
