"""python -m cupygpt.prepare on every format: the ids that it writes, and what it says."""

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.data_files import write_ranks

from cupygpt import prepare
from cupygpt.data.token_files import open_shards
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.texts.reading import duplicates
from cupygpt.texts.reading.documents import Documents

FLAGS = ["--tokenizer", "bytes", "--val-fraction", "0", "--name", "x"]
EOT = 256


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ids_of(*texts: str) -> list[int]:
    return [token for text in texts for token in (EOT, *text.encode())]


def prepared(*args: str) -> list[int]:
    assert prepare.main([*args, *FLAGS]) == 0
    return np.concatenate([shard.tokens for shard in open_shards("x_train*.bin")]).tolist()


def records(*texts: Any, field: str = "text") -> bytes:
    return "".join(
        json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)
    ).encode()


def test_packed_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl.gz").write_bytes(gzip.compress(records("Eins\r\n", None, "zwei é", "", " \n")))
    assert prepared("a.jsonl.gz") == ids_of("Eins\n", "zwei é")
    said = capsys.readouterr().out
    assert "note: 2 documents in 1 file, 12 bytes of text\n" in said
    assert "note: the text is in the field 'text'\n" in said
    assert "note: 1 Windows line end became a line feed\n" in said
    assert "note: 3 documents without any visible character left out\n" in said
    [shard] = open_shards("x_train.bin")
    record = json.loads(Path("x_train.bin.json").read_text())
    assert (record["documents"], record["text_bytes"]) == (2, 12)
    assert record["tokenizer"]["name"] == "bytes"
    assert record["origin"]["sources"] == ["a.jsonl.gz"]
    assert shard.num_tokens == 14


def test_the_field_of_records_can_be_named() -> None:
    Path("a.json").write_bytes(records("one", "two", field="body"))
    assert prepared("a.json", "--field", "body") == ids_of("one", "two")
    assert prepared("a.json") == ids_of(Path("a.json").read_text())


def test_parquet() -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: cupygpt[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"n": [1, 2, 3], "text": ["one", None, "drei é"]})
    parquet.write_table(table, "a.parquet")
    assert prepared("a.parquet") == ids_of("one", "drei é")


def test_text_files_of_all_kinds_together(capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in {
        "b/1.txt": b"one\r\ntwo\r\n",
        "b/2.txt": b"",
        "b/c/3.txt": b"\xef\xbb\xbfthree",
        "b/c/4.txt": "vier é".encode("utf-16"),
        "b/c/5.txt.gz": gzip.compress(b"five"),
        "b/c/6.md": b"six",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    want = ["one\ntwo\n", "three", "vier é"]
    assert prepared("b/**/*.txt") == ids_of(*want)
    said = capsys.readouterr().out
    assert "note: 3 documents in 3 files, 20 bytes of text\n" in said
    assert "note: 1 file without text, and left out: b/2.txt\n" in said
    record = json.loads(Path("x_train.bin.json").read_text())
    assert record["origin"]["sources"] == ["1.txt", "3.txt", "4.txt"]
    marks = "byte order marks were left out (UTF-8 of 1, UTF-16-LE of 1)"
    assert f"note: 2 Windows line ends became line feeds; {marks}\n" in said
    assert prepared("b") == ids_of(*want, "five")
    assert "left out: 1 .md; name them with a pattern" in capsys.readouterr().out
    Path("b/0.txt").write_text(" \n\t\n" * 5 + "\u3000")
    assert prepared("b/*.txt") == ids_of("one\ntwo\n")
    assert "note: 2 files without text, and left out: b/0.txt, b/2.txt\n" in capsys.readouterr().out
    Path("b/0.txt").unlink()
    assert prepared("b", "b/**/*.md") == ids_of(*want, "five", "six")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(
    pack: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.txt").write_text("first ")
    content = pack(b"one\r\ntwo\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert prepared("a.txt", "-") == ids_of("first ", "one\ntwo\n")
    assert f"note: standard input: {len(content):,} bytes, kept in ." in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pack(records("one", "two")))))
    assert prepared("-", "--field", "text") == ids_of("one", "two")
    assert "looks like JSON lines" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(records("one"))))
    assert prepared("-") == ids_of(records("one").decode())
    assert "standard input looks like JSON lines, and is read as text" in capsys.readouterr().out
    assert prepared("a.txt", "--field", "body") == ids_of("first ")
    assert "--field body was not needed" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert prepare.main(["-", *FLAGS]) == 2
    assert "standard input: the file is empty" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert prepare.main(["-", *FLAGS]) == 2
    assert "error: standard input is closed." in capsys.readouterr().err


def test_bytes_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_bytes(b"caf\xe9 \xff")
    assert prepare.main(["a.txt", *FLAGS]) == 2
    assert "byte 0xe9 at offset 3." in capsys.readouterr().err
    assert prepared("a.txt", "--errors", "replace") == ids_of("caf\ufffd \ufffd")
    assert "note: 2 bytes that are no text became U+FFFD\n" in capsys.readouterr().out
    Path("b.txt").write_bytes("two\n".encode("utf-16-le"))
    assert prepared("a.txt", "b.txt", "--errors", "replace") == ids_of(
        "caf\ufffd \ufffd", "t\0w\0o\0\n\0"
    )
    assert "note: 1 file with NUL characters, which text does not have" in capsys.readouterr().out


@pytest.mark.parametrize("group", [2**21, 10])
def test_equal_documents_are_taken_once(
    group: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(duplicates, "GROUP_ENTRIES", group)
    texts = [f"text {i % 37} of all" for i in range(100)]
    Path("a.jsonl").write_bytes(records(*texts[:60]))
    Path("b.jsonl").write_bytes(records(*texts[60:]))
    assert prepared("a.jsonl", "b.jsonl", "--dedup") == ids_of(*texts[:37])
    said = capsys.readouterr().out
    assert "note: 37 documents in 2 files, 508 bytes of text\n" in said
    assert "note: 63 documents equal to an earlier one dropped\n" in said
    assert prepared("a.jsonl", "b.jsonl") == ids_of(*texts)
    assert sorted(path.name for path in Path().iterdir()) == [
        *("a.jsonl", "b.jsonl", "x_train.bin", "x_train.bin.json"),
    ]


def test_a_larger_corpus_of_records_keeps_the_split() -> None:
    parts = []
    for count in (300, 600):
        Path("a.jsonl").write_bytes(records(*(f"Record {i} of them." for i in range(count))))
        assert prepare.main(["a.jsonl", "--tokenizer", "bytes"]) == 0
        parts.append([open_shards(f"a_{part}.bin")[0].tokens for part in ("train", "val")])
    for small, large in zip(*parts, strict=True):
        np.testing.assert_array_equal(large[: small.size], small)
        assert large.size > 1.5 * small.size


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bad.jsonl"], "bad.jsonl: line 2 is not JSON"),
        (["a.jsonl", "--field", "body"], "a.jsonl: line 1: there is no field 'body'"),
        (["cut.txt.gz"], r"cut.txt.gz: the gzip data are cut short"),
        (["a.jsonl", "--errors", "ignore"], r"invalid choice: 'ignore'"),
        (["a.jsonl", "--workers", "0"], r"--workers 0: must be from 1 to"),
        (["ids.bin", "--headerless", "--field", "text"], r"--field is for text; --headerless"),
        (["python-docs", "--dedup"], r"--dedup is for text files; python-docs"),
        (["empty.jsonl"], r"empty.jsonl: the file is empty"),
    ],
)
def test_an_error_is_one_message(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.jsonl").write_bytes(records("one", "two"))
    Path("bad.jsonl").write_bytes(records("one") + b"{")
    Path("cut.txt.gz").write_bytes(gzip.compress(b"text" * 100)[:-9])
    Path("ids.bin").write_bytes(bytes(20))
    Path("empty.jsonl").write_bytes(b"\n\n")
    before = sorted(Path().iterdir())
    try:
        code = prepare.main([*args, "--tokenizer", "bytes"])
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("line", ["To be, or not.\n", "one!\n\ntwo\n", "道可道。\n名可名。\n"])
def test_blocks_do_not_change_what_another_pattern_splits(line: str) -> None:
    """In cl100k's pattern a full stop and the line feeds behind it are one piece."""
    write_ranks(Path("my.tiktoken"), [b".\n", b"!\n", "。\n".encode()])
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    Path("my.tiktoken.json").write_text(json.dumps({"split_pattern": pattern}))
    tokenizer = load_tokenizer("my.tiktoken")
    text = line * 30
    Path("a.txt").write_text(text)
    for block_bytes in range(20, 60, 7):
        documents = Documents(["a.txt"], block_bytes=block_bytes)
        pieces = [piece for piece in documents.pieces() if piece]
        assert len(pieces) > 3
        ids = [token for piece in pieces for token in tokenizer.encode(piece)]
        assert ids == tokenizer.encode(text).tolist()
