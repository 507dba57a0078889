"""Tokens on disk: made once, by one process, named by all they depend on; damage is noticed."""

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from configs import ConfigError
from configs.records import DamagedError
from tasks import IGNORED, TASKS, cached
from tasks.text.shards import ShardWriter, TextShard, read_shards, write_index
from tasks.text.text import _opened
from tasks.text.windows import Windows

OPTIONS = {"validation_fraction": 0.2, "seq_len": 16}


@pytest.fixture(autouse=True)
def _reopen():
    """A process keeps what it has opened; here every test is a new one."""
    _opened.cache_clear()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i} " * (1 + i % 9)}) + "\n" for i in range(200)))
    return path


def task_of(corpus, **options):
    return TASKS["text"](**{"files": str(corpus), "folder": str(corpus.parent / "tokens"), **OPTIONS, **options})


def folders(corpus):
    return sorted(path.name for path in (corpus.parent / "tokens").glob("text-*"))


def epoch(task, split="train"):
    return task.rows(split, 0, 0, task.n_rows(split)).targets


def test_the_second_time_nothing_is_tokenised(corpus, monkeypatch):
    first = epoch(task_of(corpus))
    _opened.cache_clear()
    monkeypatch.setattr("tasks.text.prepare.documents", lambda *_, **__: pytest.fail("read again"))
    np.testing.assert_array_equal(epoch(task_of(corpus)), first)
    assert task_of(corpus, seq_len=31).n_rows("train") > 0
    assert len(folders(corpus)) == 1


def test_all_that_tokens_depend_on_makes_another_folder(corpus):
    changes = [{}, {"validation_fraction": 0.3}, {"max_documents": 50}, {"max_bytes": 999}]
    changes += [{"tokenizer": "bpe", "vocab_size": size} for size in (260, 261)]
    fingerprints = [task_of(corpus, **change).data_fingerprint() for change in changes]
    with corpus.open("a") as file:
        file.write('{"text": "one more"}\n')
    _opened.cache_clear()
    fingerprints.append(task_of(corpus).data_fingerprint())
    assert folders(corpus) == sorted(f"text-{fingerprint}" for fingerprint in set(fingerprints))
    assert len(folders(corpus)) == len(changes) + 1


def test_files_that_were_moved_are_the_same_files(corpus):
    fingerprint = task_of(corpus).data_fingerprint()
    moved = corpus.rename(corpus.with_name("another.jsonl"))
    assert task_of(moved).data_fingerprint() == fingerprint
    as_text = shutil.copy(moved, corpus.with_name("plain.txt"))
    assert task_of(as_text).data_fingerprint() != fingerprint


def test_a_kept_data_set_of_text_knows_the_files_it_was_drawn_from(corpus, tmp_path):
    kept = {"n_examples": 40, "seed": 0, "split": "train", "folder": tmp_path / "kept"}
    before = cached(task_of(corpus), **kept)
    corpus.write_text(corpus.read_text().upper().replace('"TEXT"', '"text"'))
    _opened.cache_clear()
    assert not np.array_equal(cached(task_of(corpus), **kept).inputs, before.inputs)


def test_tokens_take_two_bytes_while_they_fit(corpus):
    for task in (task_of(corpus), task_of(corpus, tokenizer="bpe", vocab_size=280)):
        assert _opened(task).windows["train"]._shards[0].values.dtype == np.uint16


def test_tokens_of_a_large_vocabulary_take_four(tmp_path):
    writer = ShardWriter(tmp_path, "train", np.dtype(np.uint32))
    writer.add(np.array([3, 70_000, 99_999]))
    write_index(tmp_path, [writer], {})
    examples = Windows(read_shards(tmp_path, {})["train"], seq_len=4, start=99_999).gather(np.array([0]))
    assert examples.inputs.tolist() == [[99_999, 3, 70_000, 0]]
    assert examples.targets.tolist() == [[3, 70_000, 99_999, IGNORED]]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "torn":
        content = content[:-9]
    elif how == "grown":
        content += b"\0"
    elif how == "flipped":
        middle = len(content) // 2 - 64
        content[middle] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["missing", "torn", "grown", "flipped"])
@pytest.mark.parametrize("name", ["train-00002.arrow", "index.json", "tokenizer.json"])
def test_damage_is_told_and_the_files_are_tokenised_again(corpus, monkeypatch, name, how, caplog):
    monkeypatch.setattr("tasks.text.shards.SHARD_TOKENS", 1500)
    task = task_of(corpus, tokenizer="bpe", vocab_size=262)
    before = epoch(task)
    (folder,) = (corpus.parent / "tokens").glob("text-*")
    damage(folder / name, how)
    _opened.cache_clear()
    if (name, how) == ("train-00002.arrow", "flipped"):
        with pytest.raises(ConfigError, match=f"{folder / name}: damaged: .*; the same command has the files tokenised again"):
            epoch(task)
        _opened.cache_clear()
    np.testing.assert_array_equal(epoch(task), before)
    (told,) = caplog.messages
    assert str(folder / name) in told
    assert told.endswith("; the files are tokenised again")
    _opened.cache_clear()
    np.testing.assert_array_equal(epoch(task), before)
    assert len(caplog.messages) == 1


def test_one_wrong_bit_anywhere_is_damage_or_does_no_harm(tmp_path):
    """Some have a column end far outside of the file: to read it would end the process."""
    writer = ShardWriter(tmp_path, "train", np.dtype(np.uint8))
    for n_tokens in (5, 0, 30):
        writer.add(np.arange(n_tokens) * 7)
    writer.flush()
    (entry,) = writer.entries
    path, copy = tmp_path / entry["file"], tmp_path / "copy.arrow"
    whole, content = TextShard(path, entry), path.read_bytes()
    n_damaged = 0
    for place, bit in product(range(len(content)), range(8)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        copy.unlink(missing_ok=True)  # another file: what is mapped is not to change under the one before
        copy.write_bytes(damaged)
        try:
            shard = TextShard(copy, entry)
            tokens = shard.values
        except DamagedError:
            n_damaged += 1
        else:
            np.testing.assert_array_equal(shard.offsets, whole.offsets)
            np.testing.assert_array_equal(tokens, whole.values)
    assert n_damaged > len(content)


def test_what_lies_behind_a_link_is_not_removed_though_it_is_damaged(corpus, tmp_path):
    before = epoch(task_of(corpus))
    (folder,) = (corpus.parent / "tokens").glob("text-*")
    target = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(target)
    damage(target / "train-00000.arrow", "flipped")
    kept = {path.name: path.read_bytes() for path in target.iterdir()}
    for _ in range(2):
        _opened.cache_clear()
        with pytest.raises(DamagedError, match=f"{folder} is a link, .*: remove the link"):
            epoch(task_of(corpus))
        assert {path.name: path.read_bytes() for path in target.iterdir()} == kept
    folder.unlink()
    _opened.cache_clear()
    np.testing.assert_array_equal(epoch(task_of(corpus)), before)


def test_an_intact_shard_is_read_though_another_is_damaged_only_in_its_tokens(corpus, monkeypatch):
    """Checksums are of what is used: opening a large corpus does not read it through."""
    monkeypatch.setattr("tasks.text.shards.SHARD_TOKENS", 1500)
    task = task_of(corpus)
    task.n_rows("train")
    (folder,) = (corpus.parent / "tokens").glob("text-*")
    damage(folder / "train-00000.arrow", "flipped")
    _opened.cache_clear()
    assert len(epoch(task, "validation"))
    with pytest.raises(ConfigError, match="checksum"):
        epoch(task)


def _tokenise(corpus, barrier, results):
    barrier.wait()
    task = task_of(corpus)
    results.put((task.data_fingerprint(), task.rows("train", 0, 0, 20).inputs.sum()))


def test_processes_that_start_together_tokenise_once(corpus, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_tokenise, args=(corpus, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    got = {results.get(timeout=240) for _ in processes}
    for process in processes:
        process.join()
    assert len(got) == 1
    assert len(folders(corpus)) == 1
    assert not list((tmp_path / "tokens").glob(".*.unfinished"))


SLOW = """
import signal, sys
import tasks.text.prepare
from tests.tasks.text.test_shards import task_of
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
inner = tasks.text.prepare.write_index
def slow(*arguments):
    print("writing", flush=True)
    signal.pause()
    inner(*arguments)
tasks.text.prepare.write_index = slow
task_of(Path(sys.argv[1])).n_rows("train")
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_nothing_that_is_taken_for_a_corpus(corpus, end):
    with subprocess.Popen([sys.executable, "-c", SLOW, corpus], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(end)
        process.wait()
    assert folders(corpus) == []
    assert task_of(corpus).n_rows("train") > 0
    assert not list((corpus.parent / "tokens").glob(".*.unfinished"))


def test_a_folder_that_cannot_be_made_is_an_error(corpus):
    (corpus.parent / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/tokens.*cannot be read or written"):
        task_of(corpus, folder=str(corpus.parent / "file" / "tokens")).n_rows("train")
