"""Built-in texts: llm.c's exact TinyShakespeare tokens, and Python's own prose."""

import gc
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from support.data_files import shakespeare_file, use_gpt2_files
from support.web_server import cut_at, serving

from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer, load_tokenizer
from cupygpt.errors import DataError, RunError
from cupygpt.texts import corpora, python_docs
from cupygpt.texts.python_docs import PythonDocs, python_docs_text, read_python_docs


def test_each_passage_follows_end_of_text() -> None:
    text = "First:\nhear me.\n\nAll:\nSpeak.\n\n\nEnd\n"
    tokens = corpora.tinyshakespeare_tokens(text, ByteTokenizer())
    assert tokens.dtype == np.uint16
    marked = ByteTokenizer().decode(tokens).replace("<|endoftext|>", "#")
    assert marked == "#First:\nhear me.\n\n#All:\nSpeak.\n\n#\nEnd\n"


def test_tinyshakespeare_has_the_tokens_of_llmc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shakespeare_file()
    use_gpt2_files(monkeypatch)
    tokens = corpora.tinyshakespeare_tokens(
        corpora.tinyshakespeare_text(source), load_tokenizer("gpt2")
    )
    digests = []
    for part in (tokens[:32768], tokens[32768:]):
        write_shard(tmp_path / "a.bin", part)
        digests.append(hashlib.sha256((tmp_path / "a.bin").read_bytes()).hexdigest())
    assert digests == [
        "fe99db720dc7c83e694806d4e047a952909411da1daccde4ccc2e55f40882a62",
        "8a70606be574040c26d225694f5f9759973b419852d22f7fe5c118e1b359dcc8",
    ]


def test_a_source_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.txt: could not be read .*--source"):
        corpora.tinyshakespeare_text(tmp_path / "no.txt")
    with pytest.raises(DataError, match=r"input\.txt: could not be read"):
        corpora.tinyshakespeare_text(tmp_path)
    (tmp_path / "input.txt").write_text("First:")
    assert corpora.tinyshakespeare_text(tmp_path) == "First:"
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="byte 0xff at offset 3"):
        corpora.tinyshakespeare_text(tmp_path / "a.txt")


def test_tinyshakespeare_comes_from_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "First:\nhear me.\n" * 100
    with serving({f"/mirror/{corpora.SHAKESPEARE_PATH}": text.encode()}) as site:
        mirror = f"{site.url}/mirror"
        with pytest.raises(DataError, match=r"1,600 bytes came whose SHA-256 is not the expected"):
            corpora.tinyshakespeare_text(mirror=mirror)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", sha256)
        site.answer_next(cut_at(1000))
        for _ in range(2):
            assert corpora.tinyshakespeare_text(mirror=mirror) == text
        assert len(site.asked) == 3
        site.files["/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"] = b"<html>log in"
        with pytest.raises(DataError, match="a web page"):
            corpora.tinyshakespeare_text(mirror=site.url)


def test_without_network_the_text_can_come_from_a_file() -> None:
    with pytest.raises(RunError, match=r"no server can be reached.*--source"):
        corpora.tinyshakespeare_text(mirror="http://nowhere.invalid")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small standard library: three documented modules, and what must be left out."""
    root = tmp_path / "lib"
    for folder in ("pkg", "test", "pkg/tests", "site-packages"):
        (root / folder).mkdir(parents=True)
    (root / "b.py").write_text(
        '"""Module b."""\n'
        "if True:\n"
        "    class C:\n"
        '        """Class C."""\n'
        "        async def f(self):\n"
        '            """Same."""\n'
        "    g = lambda: 1 if f else 2\n"
        "try:\n"
        "    pass\n"
        "except E:\n"
        "    def h():\n"
        '        """H\n\n        indented."""\n'
    )
    (root / "a.py").write_text('"""Module a."""\ndef f():\n    """Same."""\n')
    (root / "pkg" / "c.py").write_text("x = 1\ndef f():\n    '''In pkg\\d.'''\n")
    (root / "broken.py").write_text('def f(:\n    """Broken."""\n')
    (root / "latin.py").write_bytes(b'"""\xff"""\n')
    for folder in ("test", "pkg/tests", "site-packages"):
        (root / folder / "t.py").write_text('"""Left out."""\n')
    return root


def test_docstrings_come_in_order_without_repeats(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_docs, "_topics", lambda: ["Topic.\n"])
    docs = read_python_docs(library)
    assert docs.documents == (
        "Topic.\n",
        "Module a.\n",
        "Same.\n",
        "Module b.\n",
        "Class C.\n",
        "H\n\nindented.\n",
        "In pkg\\d.\n",
    )
    assert len(docs.notes) == 1
    assert "7 docstrings found" in docs.notes[0]
    assert gc.isenabled()


def test_a_python_without_sources_still_has_topics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = read_python_docs(tmp_path / "python311.zip")
    assert "0 docstrings found" in docs.notes[0]
    assert len(docs.documents) > 50
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"no built-in text.*cupygpt\.prepare FILE"):
        read_python_docs(tmp_path / "python311.zip")


def test_the_corpus_of_this_python_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(tmp_path / "cache"))
    docs = python_docs_text()
    assert len(set(docs.documents)) == len(docs.documents) > 50
    assert sum(map(len, docs.documents)) > 300_000
    [kept] = (tmp_path / "cache").iterdir()

    def not_again(library: Path) -> PythonDocs:
        raise AssertionError(library)

    with monkeypatch.context() as patch:
        patch.setattr(python_docs, "read_python_docs", not_again)
        assert python_docs_text() == docs
    content = kept.read_bytes()
    fresh = PythonDocs(("fresh",), ())
    monkeypatch.setattr(python_docs, "read_python_docs", lambda library: fresh)
    for damage in (b"", b"[]", content[:-50], content.replace(b"the", b"teh", 1)):
        kept.write_bytes(damage)
        assert python_docs_text() == fresh


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    fresh = PythonDocs(("fresh",), ())
    monkeypatch.setattr(python_docs, "read_python_docs", lambda library: fresh)
    assert python_docs_text() == fresh


def test_whole_documents_are_held_out_evenly() -> None:
    documents = [f"doc {i}" for i in range(100)]
    train, val = corpora.hold_out(documents)
    assert val == ["doc 9", "doc 29", "doc 49", "doc 69", "doc 89"]
    assert sorted(train + val) == sorted(documents)
    train_tokens, val_tokens = corpora.python_docs_tokens(PythonDocs(tuple(documents), ()))
    decode = ByteTokenizer().decode
    assert decode(val_tokens) == "".join("<|endoftext|>" + text for text in val)
    assert decode(train_tokens) == "".join("<|endoftext|>" + text for text in train)
