"""Documents out of files of each format, and the one message for what cannot be read."""

import json
import re
from collections import Counter

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import ConfigError
from tasks import TASKS
from tasks.text.corpus import TextFile, by_content, documents, find_files
from tasks.text.prepare import split_of

DOCUMENTS = ["one", "two\nlines\r\n", "naïve ☃ 你好 😀", "x" * 300, "one", "\x00\x1b tab\t"]


def write_plain(folder, texts):
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return folder


def write_json_lines(path, texts, field="text"):
    lines = [json.dumps({"id": number, field: text}, ensure_ascii=number % 2 == 0) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def write_parquet(path, texts, field="text", kind=pa.string()):  # noqa: B008 - an immutable type
    pq.write_table(pa.table({"id": range(len(texts)), field: pa.array(texts, kind)}), path, row_group_size=2)
    return path


def task_of(tmp_path, files, **options):
    return TASKS["text"](files=files, folder=str(tmp_path / "tokens"), **{"validation_fraction": 0.0, "seq_len": 16, **options})


def epoch(task, split="train"):
    examples = task.rows(split, 0, 0, task.n_rows(split))
    return Counter(map(tuple, [*examples.inputs.tolist(), *examples.targets.tolist()]))


def read(paths, **limits):
    limits = {"max_documents": None, "max_bytes": None, **limits}
    return [document.decode() for document in documents(map(TextFile.by_suffix, paths), field="text", **limits)]


def test_all_formats_hold_the_same_documents(tmp_path):
    plain = write_plain(tmp_path / "plain", DOCUMENTS)
    lines = write_json_lines(tmp_path / "lines.jsonl", DOCUMENTS)
    table = write_parquet(tmp_path / "table.parquet", DOCUMENTS)
    large = write_parquet(tmp_path / "large.parquet", DOCUMENTS, kind=pa.large_string())
    epochs = [epoch(task_of(tmp_path, str(path))) for path in (plain, lines, table, large)]
    assert epochs[0] == epochs[1] == epochs[2] == epochs[3]
    assert read([lines]) == read([table]) == DOCUMENTS


TEXT_TYPES = {
    "string": pa.string(),
    "large string": pa.large_string(),
    "string view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "dictionary of large strings": pa.dictionary(pa.int32(), pa.large_string()),
    "JSON": pa.json_(pa.string()),
}


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_text_columns_of_any_type_are_read(tmp_path, kind):
    path, texts = tmp_path / "table.parquet", pa.array(DOCUMENTS * 3)
    column = texts.dictionary_encode() if "dictionary" in kind else texts
    table = pa.table({"id": range(len(texts)), "text": column.cast(TEXT_TYPES[kind])})
    pq.write_table(table, path, row_group_size=4)
    assert read([path]) == DOCUMENTS * 3
    assert task_of(tmp_path, str(path)).n_rows("train") > 0


def test_a_category_of_pandas_is_text(tmp_path):
    path = tmp_path / "table.parquet"
    pd.DataFrame({"text": pd.Series(DOCUMENTS, dtype="category"), "n": range(len(DOCUMENTS))}).to_parquet(path)
    assert read([path]) == DOCUMENTS


OTHER_TYPES = {
    "int64": [1, 2],
    "double": [0.5],
    "binary": [b"text in UTF-8"],
    "dictionary<values=binary": pa.array([b"a", b"b"]).dictionary_encode(),
    "list<element: string>": [["a"]],
    "struct<a: string>": [{"a": "b"}],
    "null": [None, None],
    "timestamp": pa.array([0], pa.timestamp("s")),
}


@pytest.mark.parametrize("name", OTHER_TYPES)
def test_a_column_of_another_type_is_named_with_its_type(tmp_path, name):
    pq.write_table(pa.table({"id": pa.array(range(len(OTHER_TYPES[name]))), "text": OTHER_TYPES[name]}), tmp_path / "a.parquet")
    message = f"files: {tmp_path}/a.parquet: no column of text 'text'; columns: id, text; 'text' is of the type {name}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}.*; see the option 'field'$"):
        read([tmp_path / "a.parquet"])


def test_nulls_and_names_that_are_there_twice_are_told(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", None, "a"]).dictionary_encode()}), path)
    with pytest.raises(ConfigError, match=r"a\.parquet, row 1: 'text' is null"):
        read([path])
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(ConfigError, match=r"no column of text 'text'; columns: text, text; 2 of them are called 'text'"):
        read([path])


def test_formats_may_be_mixed_and_columns_have_any_name(tmp_path):
    lines = write_json_lines(tmp_path / "a.ndjson", DOCUMENTS[:2], field="body")
    table = write_parquet(tmp_path / "b.parquet", DOCUMENTS[2:4], field="body")
    plain = write_plain(tmp_path / "plain", DOCUMENTS[4:])
    mixed = task_of(tmp_path, [str(lines), str(table), str(plain)], field="body")
    assert epoch(mixed) == epoch(task_of(tmp_path, str(write_json_lines(tmp_path / "all.jsonl", DOCUMENTS))))


def test_paths_folders_and_globs_find_files(tmp_path):
    for name in ("a.txt", "b.md", "deep/er/c.txt", ".hidden", "deep/.git/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(*given):
        return {file.path.relative_to(tmp_path).as_posix() for file in find_files([str(tmp_path / name) for name in given])}

    assert found("a.txt") == {"a.txt"}
    assert found("") == {"a.txt", "b.md", "deep/er/c.txt"}
    assert found("*.txt") == {"a.txt"}
    assert found("**/*.txt") == {"a.txt", "deep/er/c.txt"}
    assert len(find_files([str(tmp_path / "a.txt"), str(tmp_path / "*.txt")])) == 1


def test_the_standard_library_is_a_corpus_without_what_others_installed():
    files = find_files(["stdlib"])
    assert {"argparse.py", "_collections_abc.py"} <= {file.path.name for file in files}
    assert not any(part in ("site-packages", "test") for file in files for part in file.path.parts)
    assert len(read([file.path for _, file in by_content(files)])) == len(files)


def test_limits_take_the_first_documents_and_splits_stay_what_they_were(tmp_path):
    texts = [f"document {number} " * 3 for number in range(400)]
    path = write_json_lines(tmp_path / "lines.jsonl", texts)
    assert read([path], max_documents=7) == texts[:7]
    assert read([path], max_bytes=len(texts[0] + texts[1])) == texts[:2]
    assert read([path], max_bytes=len(texts[0] + texts[1]) - 1) == texts[:1]
    folder = write_plain(tmp_path / "plain", texts)
    for files in (str(path), str(folder)):
        few, all_ = (task_of(tmp_path, files, validation_fraction=0.25, max_documents=limit) for limit in (80, None))
        for split in ("train", "validation", "test"):
            assert epoch(few, split) <= epoch(all_, split)
            assert few.n_rows(split) > 0


def test_a_document_and_its_copies_are_in_one_split(tmp_path):
    texts = [f"number {number}: " + "word " * (number % 7) for number in range(300)]
    lines = write_json_lines(tmp_path / "lines.jsonl", texts + texts[::-1])
    plain = write_plain(tmp_path / "plain", texts)
    task = task_of(tmp_path, [str(lines), str(plain)], validation_fraction=0.2, seq_len=64)
    seen = {split: epoch(task, split) for split in ("train", "validation", "test")}
    assert all(count % 3 == 0 for windows in seen.values() for count in windows.values())
    assert not (seen["train"] & seen["validation"]) | (seen["train"] & seen["test"]) | (seen["validation"] & seen["test"])
    assert sum(windows.total() for windows in seen.values()) == 2 * 3 * 300
    for split, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        assert task.n_rows(split) / 900 == pytest.approx(share, abs=0.1)


def broken_files(folder):
    (folder / "latin.txt").write_bytes("fine until here: é".encode("latin-1"))
    (folder / "latin.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xe9"}\n')
    (folder / "torn.jsonl").write_text('{"text": "fine"}\n{"text": "to')
    (folder / "list.jsonl").write_text('["text"]\n')
    (folder / "number.jsonl").write_text('{"text": 3}\n')
    (folder / "half.jsonl").write_text('{"text": "\\ud83d"}\n')
    (folder / "deep.jsonl").write_text("[" * 100_000)
    (folder / "digits.jsonl").write_text('{"text": "a", "number": ' + "1" * 5000 + "}")
    (folder / "empty.txt").write_text("")
    (folder / "no.parquet").write_text("not a table")
    write_json_lines(folder / "other.jsonl", ["a"], field="body")
    write_parquet(folder / "other.parquet", ["a"], field="body")
    write_parquet(folder / "null.parquet", ["a", "b", None])
    write_parquet(folder / "number.parquet", [1, 2], kind=pa.int64())


MESSAGES = {
    "latin.txt": "no UTF-8 text: byte 0xe9 at offset 17",
    "latin.jsonl": "line 2: no UTF-8 text: byte 0xe9",
    "torn.jsonl": "line 2: no JSON",
    "deep.jsonl": "line 1: no JSON",
    "digits.jsonl": "line 1: no JSON",
    "list.jsonl": "line 1: an object with a text 'text' is expected",
    "number.jsonl": "line 1: an object with a text 'text' is expected",
    "half.jsonl": "line 1: no Unicode text",
    "empty.txt": "no text in",
    "no.parquet": "cannot be read as Parquet",
    "other.jsonl": "line 1: an object with a text 'text' is expected; see the option 'field'",
    "other.parquet": "no column of text 'text'; columns: id, body",
    "null.parquet": "row 2: 'text' is null",
    "number.parquet": "no column of text 'text'; columns: id, text; 'text' is of the type int64",
    "missing.txt": "no file is named or matched by",
    "*.none": "no file is named or matched by",
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer": "bpe", "vocab_size": 300}])
def test_what_cannot_be_read_is_one_message_that_names_the_file(tmp_path, name, tokenizer):
    broken_files(tmp_path)
    task = task_of(tmp_path, str(tmp_path / name), **tokenizer)
    with pytest.raises(ConfigError) as caught:
        task.n_rows("train")
    assert MESSAGES[name] in str(caught.value)
    assert name in str(caught.value)
    assert str(caught.value).startswith("files: ")
    assert "\n" not in str(caught.value)
    assert all(path.name.endswith(".lock") for path in tmp_path.glob("tokens/*")), "something half-written is left"


def test_a_folder_that_cannot_be_written_is_told_under_its_key(tmp_path):
    write_plain(tmp_path / "plain", DOCUMENTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"^folder: {tmp_path}/file: cannot be read or written: "):
        TASKS["text"](files=str(tmp_path / "plain"), folder=str(tmp_path / "file")).n_rows("train")


def test_an_empty_split_is_an_error_that_says_why(tmp_path):
    write_plain(tmp_path / "plain", [next(text for text in map(str, range(99)) if split_of(text.encode(), 0.1) == "train")])
    task = task_of(tmp_path, str(tmp_path / "plain"), validation_fraction=0.1)
    assert task.n_rows("train") == 1
    for split in ("validation", "test"):
        with pytest.raises(ConfigError, match=f"the {split} split of .* a plain file is one document"):
            task.n_rows(split)


def test_a_document_larger_than_max_bytes_is_an_error(tmp_path):
    write_plain(tmp_path / "plain", ["x" * 100])
    with pytest.raises(ConfigError, match=r"no text in .* max_bytes=99"):
        task_of(tmp_path, str(tmp_path / "plain"), max_bytes=99).n_rows("train")
