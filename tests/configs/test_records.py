"""JSON of ours: what is read is what was written, or it is said what is wrong."""

import json
import math

import pytest

from configs.records import DamagedError, add_rows, kept_json, read_json, read_rows, write_json, write_rows

VALUE = {
    "fingerprint": "abc",
    "loss": 0.1,
    "none": math.nan,
    "counts": [1, 2.5e-17, {"deep": True}],
    "name": "a\u0308\u2028 \U0001f600",
    "10": 1,
    "9": 2,
}
READ = {**VALUE, "none": None}


def test_an_object_comes_back(tmp_path):
    path = tmp_path / "deep/results.json"
    write_json(path, VALUE)
    assert read_json(path) == READ
    assert list(json.loads(path.read_text())) == [*VALUE, "checksum"]
    write_json(path, {})
    assert read_json(path) == {}


def test_the_way_it_is_laid_out_does_not_matter(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, VALUE)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_json(path) == READ


@pytest.mark.parametrize("place", range(0, 260, 7))
def test_one_flipped_bit_is_noticed_or_changes_nothing(tmp_path, place):
    path = tmp_path / "results.json"
    write_json(path, VALUE)
    whole = bytearray(path.read_bytes())
    whole[place % len(whole)] ^= 1
    path.write_bytes(whole)
    try:
        assert read_json(path) == READ
    except DamagedError as error:
        assert str(error).startswith(f"{path}: damaged: ")  # noqa: PT017 - a blank may become another


NOT_OURS = [b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a": 1, "a": 2}', b"1" * 5000]


@pytest.mark.parametrize("text", NOT_OURS, ids=lambda text: text[:8].decode(errors="replace"))
def test_what_is_none_of_ours_is_one_message(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text)
    with pytest.raises(DamagedError, match=f"^{path}: damaged: "):
        read_json(path)


def test_what_is_missing_or_of_another_run_is_said(tmp_path):
    path, said = tmp_path / "results.json", []
    with pytest.raises(DamagedError, match=r"results\.json: is missing"):
        read_json(path)
    assert kept_json(path, said.append) is None
    assert not said
    write_json(path, VALUE)
    assert kept_json(path, said.append, fingerprint="abc") == READ
    with pytest.raises(DamagedError, match=r"is of another run \(abc; this one is xyz\)"):
        read_json(path, fingerprint="xyz")
    assert kept_json(path, said.append, fingerprint="xyz") is None
    assert said == [f"{path}: is of another run (abc; this one is xyz); it is made again"]


def test_rows_come_back_and_damaged_lines_are_counted(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_rows(path) == ([], 0)
    write_rows(path, [VALUE])
    add_rows(path, [{"key": "a"}, {}])
    assert read_rows(path) == ([READ, {"key": "a"}, {}], 0)
    lines = [b"[]", b"{", b"\xff", b'{"key": "b"}', path.read_bytes().splitlines()[1].replace(b'"a"', b'"b"')]
    with path.open("ab") as file:
        file.write(b"\n".join(lines))
    assert read_rows(path) == ([READ, {"key": "a"}, {}], len(lines))
