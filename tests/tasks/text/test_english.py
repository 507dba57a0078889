"""English prose out of the sources of Python: which texts, in which order, and named by the sources."""

import inspect
import sys
import textwrap

import pytest

from configs import ConfigError
from tasks import TASKS
from tasks.text.corpus import by_content, documents, find_files
from tasks.text.english import prose

LONG = "Words that say what it is for. " * 8
SOURCE = f'''
"""{LONG}module

    indented
"""
import no_such_module

class Thing:
    """{LONG}class"""

    def short(self):
        """Too short."""

    async def long(self):
        """{LONG}method \\d"""
        def inner():
            """{LONG}inner"""

def last():
    """{LONG}function"""
    "{LONG}no docstring"
'''


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_long_docstrings_of_a_module_are_one_document_in_the_order_of_the_source(tmp_path):
    (document,) = prose(write(tmp_path / "module.py", SOURCE))
    ends = ["module\n\nindented", "class", "method \\d", "inner", "function"]
    assert document.decode() == "\n\n".join(LONG + end for end in ends)
    assert list(prose(write(tmp_path / "bare.py", "x = 1\n"))) == [b""]
    with pytest.raises(ConfigError, match=f"{tmp_path}/bad.py: no source of this Python"):
        list(prose(write(tmp_path / "bad.py", "def")))


@pytest.mark.parametrize("error", [RecursionError("too deep"), MemoryError()])
def test_a_source_with_more_levels_than_the_parser_has_is_told(tmp_path, monkeypatch, error):
    def parse(_):
        raise error

    monkeypatch.setattr("tasks.text.english.ast.parse", parse)
    with pytest.raises(ConfigError, match=r"no source of this Python: too (deep|many levels)"):
        list(prose(write(tmp_path / "deep.py", "1")))


def test_each_topic_of_the_help_is_a_document_and_nothing_is_run(tmp_path):
    source = "raise SystemExit\ntopics = {'a': 'One ' 'topic.\\n', 'b': 'Ünother'}\n"
    texts = [document.decode() for document in prose(write(tmp_path / "pydoc_data" / "topics.py", source))]
    assert texts == ["One topic.\n", "Ünother"]


def test_english_is_a_corpus_of_the_standard_library():
    files = find_files(["english"])
    assert {file.path for file in files} == {file.path for file in find_files(["stdlib"])}
    imported = "pydoc_data.topics" in sys.modules
    few = [file for file in files if file.path.name in ("topics.py", "textwrap.py")]
    texts = [document.decode() for document in documents(few, field="text", max_documents=None, max_bytes=None)]
    assert len(texts) > 70
    assert sum(map(len, texts)) > 300_000
    assert any(inspect.getdoc(textwrap.TextWrapper) in text for text in texts)
    assert imported == ("pydoc_data.topics" in sys.modules)


def test_prose_is_named_by_its_sources_and_keeps_the_limits(tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / "library" / f"{name}.py", f'"""{LONG}{name}"""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "library"))
    options = {"folder": str(tmp_path / "tokens"), "validation_fraction": 0.0, "seq_len": 1000}

    def task(number, files="english", **more):
        return TASKS["text"](files=files, **{**options, "seq_len": 1000 + number, **more})

    first = task(0)
    assert first.n_rows("train") == 3
    assert task(1, max_documents=2).n_rows("train") == 2
    assert task(2, files=["english", "stdlib"]).n_rows("train") == 6
    fingerprints = [first.data_fingerprint(), task(3, files="stdlib").data_fingerprint()]
    write(tmp_path / "library" / "a.py", f'"""{LONG}changed"""\n')
    fingerprints.append(task(4).data_fingerprint())
    assert len(set(fingerprints)) == 3
    order = [file.path.name for _, file in by_content(find_files(["english"]))]
    assert order == [file.path.name for _, file in by_content(find_files(["english"])[::-1])]
