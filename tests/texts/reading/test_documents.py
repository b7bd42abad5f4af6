"""Files of every format become the same documents, and what was met is counted."""

import bz2
import codecs
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupygpt.errors import ConfigError, DataError
from cupygpt.texts.reading import json_lines, opening
from cupygpt.texts.reading.documents import Documents
from cupygpt.texts.reading.find import find_files
from cupygpt.texts.reading.reading import Reading

TEXTS = ["One.\nTwo.\n", "Zwei, drei: äöü €\n", "\U0001f600" * 3]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(*files: str, **options: Any) -> list[str]:
    return texts_of(Documents(files, Reading(**options)))


def texts_of(documents: Documents) -> list[str]:
    texts = [""]
    for piece in documents.pieces():
        if piece is None:
            texts.append("")
        else:
            texts[-1] += piece
    assert texts.pop() == ""
    return texts


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def zstd_bytes(content: bytes) -> bytes:
    try:
        zstd = opening.import_zstd("x.zst")
    except ConfigError as error:
        pytest.skip(str(error))
    # As the program zstd does, with a checksum.
    packed: bytes = zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})
    return packed


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd_bytes,
}


@pytest.mark.parametrize("ending", PACKED)
def test_json_lines_are_one_document_each(ending: str) -> None:
    records = [{"id": 7, "text": text} for text in TEXTS]
    path = Path(f"a.jsonl{ending}")
    path.write_bytes(PACKED[ending](lines(records)))
    assert read(str(path)) == TEXTS


@pytest.mark.parametrize("ending", PACKED)
def test_a_text_is_one_document(ending: str) -> None:
    path = Path(f"a.txt{ending}")
    path.write_bytes(PACKED[ending]("".join(TEXTS).encode()))
    assert read(str(path)) == ["".join(TEXTS)]


def test_several_packed_streams_in_one_file_are_one_text() -> None:
    Path("a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert read("a.txt.gz") == ["one two"]


def write_parquet(path: str, columns: dict[str, list[Any]], **options: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: cupygpt[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path, **options)


def test_each_row_of_a_parquet_file_is_a_document() -> None:
    texts = [*TEXTS, None, "", *TEXTS] * 100
    columns = {"id": list(range(800)), "url": ["x"] * 800, "text": texts}
    write_parquet("a.parquet", columns, row_group_size=300)
    documents = Documents(["a.parquet"])
    assert texts_of(documents) == TEXTS * 200
    assert documents.tally.empty == 200
    assert documents.tally.fields == {"text": 1}
    assert read("a.parquet", field="url") == ["x"] * 800
    with pytest.raises(DataError, match=r"no field 'texts'; the fields are 'id', 'url', 'text'"):
        read("a.parquet", field="texts")
    with pytest.raises(DataError, match="column 'id' holds no text, but int64"):
        read("a.parquet", field="id")
    Path("cut.parquet").write_bytes(Path("a.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.parquet: after row 0, this is no parquet file"):
        read("cut.parquet")


def test_without_pyarrow_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    Path("a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"pip install 'cupygpt\[parquet\]'"):
        read("a.parquet")


def test_without_zstd_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("compression", "backports"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    Path("a.txt.zst").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pip install 'cupygpt\[zstd\]'"):
        read("a.txt.zst")


@pytest.mark.parametrize("block_bytes", [3, 4, 5, 64, 2**20])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-8", b""),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
    ],
)
def test_marks_and_windows_line_ends_are_normalised(
    encoding: str, mark: bytes, block_bytes: int
) -> None:
    text = "a\r\n\r\nb\rc\n\r\n" + "".join(TEXTS) + "\r"
    Path("a.txt").write_bytes(mark + text.encode(encoding))
    documents = Documents(["a.txt"], block_bytes=block_bytes)
    assert texts_of(documents) == [text.replace("\r\n", "\n")]
    assert documents.tally.line_ends == 3
    assert documents.tally.marks == ({encoding.upper(): 1} if mark else {})


def test_line_ends_inside_records_are_normalised_too() -> None:
    Path("a.jsonl").write_bytes(b'{"text": "a\\r\\nb"}\r\n\r\n{"text": "c"}\r\n')
    documents = Documents(["a.jsonl"])
    assert texts_of(documents) == ["a\nb", "c"]
    assert documents.tally.line_ends == 1


@pytest.mark.parametrize("block_bytes", [3, 7, 2**20])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_bad_bytes_are_named_or_replaced(ending: str, block_bytes: int) -> None:
    Path(f"a.txt{ending}").write_bytes(PACKED[ending]("né ".encode() * 9 + b"\xff\xc3 bad"))
    where = r"\.gz: .* of the unpacked data" if ending else r": not UTF-8 .* at offset 36\."
    with pytest.raises(DataError, match=rf"a\.txt{where}.*--errors replace"):
        list(Documents([f"a.txt{ending}"], block_bytes=block_bytes).pieces())
    documents = Documents([f"a.txt{ending}"], Reading(replace=True), block_bytes=block_bytes)
    assert texts_of(documents) == ["né " * 9 + "\ufffd\ufffd bad"]
    assert documents.tally.replaced == 2


def test_half_a_surrogate_pair_in_json_is_replaced_and_counted() -> None:
    Path("a.jsonl").write_bytes(b'{"text": "a\\ud83d b \\ud83d\\ude00"}\n')
    documents = Documents(["a.jsonl"])
    assert texts_of(documents) == ["a\ufffd b \U0001f600"]
    assert documents.tally.replaced == 1


def test_a_list_over_several_lines_is_told_from_a_damaged_file() -> None:
    Path("a.json").write_text('[\n {"text": "x"}\n]\n')
    with pytest.raises(DataError, match=r"a\.json: this is one JSON list.*jq -c"):
        texts_of(Documents(["a.json"], Reading(field="text")))


FIELDS: list[tuple[list[Any], str | None, list[str] | str]] = [
    ([{"body": "x"}], None, ["x"]),
    ([{"n": 1, "body": "x"}], None, ["x"]),
    ([{"title": "t", "content": "x"}], None, ["x"]),
    ([{"title": "t", "story": "s", "text": "x"}], None, ["x"]),
    ([{"meta": {"text": "x"}, "id": "i"}], "meta.text", ["x"]),
    ([{"a.b": "x"}], "a.b", ["x"]),
    ([{"text": None}, {"text": "x"}, {"text": " \n"}], None, ["x"]),
    ([{"title": "t", "body": "x"}], None, r"line 1: 2 fields hold text.*'title', 'body'"),
    ([{"n": 1}], None, r"line 1: 0 fields hold text.*'n'"),
    ([{"text": "x"}, {"txt": "y"}], None, r"line 2: there is no field 'text'; .* are 'txt'"),
    ([{"text": "x"}, {"text": 3}], None, r"line 2: the field 'text' holds no text, but 3"),
    ([{"text": "x"}, ["y"]], None, r"line 2 is not a JSON object"),
    ([[{"text": "x"}]], "text", r"this is one JSON list.*jq -c '\.\[\]' a"),
]


@pytest.mark.parametrize(("records", "field", "want"), FIELDS)
def test_the_field_of_a_record(
    records: list[Any], field: str | None, want: list[str] | str
) -> None:
    Path("a.jsonl").write_bytes(lines(records))
    if isinstance(want, list):
        assert read("a.jsonl", field=field) == want
        return
    with pytest.raises(DataError, match=want):
        read("a.jsonl", field=field)


def test_a_long_record_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupygpt.texts.reading.documents.LONG_RECORD", 1000)
    texts = ["a line of it\n" * 500, "short"]
    Path("a.jsonl").write_bytes(lines([{"text": text} for text in texts]))
    documents = Documents(["a.jsonl"], block_bytes=100)
    assert texts_of(documents) == texts
    assert len(list(documents.pieces())) > 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"}\n\n{"text": ', r"line 3 is not JSON"),
        (b'{"text": "x"}\n' + b"[" * 10**5, r"line 2 is not JSON \(nested too deeply\)"),
        (b'{"text": "' + b"x" * 2000, r"line 1 has more than 1,000 characters"),
        (b'{"text": "\xff"}\n', r"not UTF-8 text: byte 0xff at offset 10"),
    ],
)
def test_a_damaged_line_is_named(
    content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MOST_CHARACTERS", 1000 if b"xxx" in content else 2**25)
    Path("a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jsonl: {message}"):
        read("a.jsonl")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_damaged_packed_files_are_named(ending: str) -> None:
    packed = PACKED[ending](os.urandom(3000).hex().encode())
    Path(f"cut.txt{ending}").write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"cut\.txt\.\w+: the \w+ data are cut short after"):
        read(f"cut.txt{ending}")
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    Path(f"flip.txt{ending}").write_bytes(flipped)
    with pytest.raises(DataError, match=r"flip\.txt\.\w+: .*(is damaged|not UTF-8)"):
        read(f"flip.txt{ending}")
    Path(f"no.txt{ending}").write_bytes(b"plain text, packed by its name only")
    with pytest.raises(DataError, match=r"no\.txt\.\w+: after 0 bytes of text, this is no"):
        read(f"no.txt{ending}")


def test_standard_input_is_read_as_often_as_needed(tmp_path: Path) -> None:
    for content in (b"one\r\ntwo\n", gzip.compress(b"one\ntwo\n")):
        with (tmp_path / "spool").open("w+b") as spool:
            spool.write(content)
            spool.flush()
            documents = Documents(["-"], stdin=spool)
            assert texts_of(documents) == texts_of(documents) == ["one\ntwo\n"]
            assert documents.position == documents.total_bytes == len(content)


def test_a_file_that_changes_meanwhile_is_an_error() -> None:
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("text\n" * 3)
    documents = Documents(["a.txt", "b.txt"])
    assert len(texts_of(documents)) == 2
    with Path("b.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(DataError, match=r"b\.txt: changed while .*15 bytes, then 20"):
        texts_of(documents)
    Path("b.txt").unlink()
    with pytest.raises(DataError, match=r"b\.txt: could not be read \(No such file"):
        texts_of(documents)


def test_a_long_text_without_lines_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupygpt.texts.reading.documents.MOST_CHARACTERS", 2000)
    for text in ("word and  " * 2000, "x" * 20000, " \t" * 5000):
        Path("a.txt").write_text(text)
        pieces = list(Documents(["a.txt"], block_bytes=100).pieces())
        assert pieces.pop() is None
        assert "".join(filter(None, pieces)) == text
        assert max(len(piece or "") for piece in pieces) < 2400


def test_files_are_found_by_path_pattern_and_folder() -> None:
    names = ["b/x.txt", "b/c/y.txt", "b/c/z.md", "b/d.jsonl.gz", "b/.git/h.txt", "b/e.parquet"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("b/link.txt").symlink_to("x.txt")
    found = find_files(["b/**/*.txt"], "")
    assert (found.files, found.again) == (["b/c/y.txt", "b/x.txt"], ["b/link.txt"])
    folder = find_files(["b", "b/x.txt"], "")
    assert folder.files == ["b/c/y.txt", "b/d.jsonl.gz", "b/e.parquet", "b/x.txt"]
    assert folder.again == ["b/link.txt", "b/x.txt"]
    assert folder.left_out == {".md": 1}
    Path("m").mkdir()
    Path("m/a.md").touch()
    with pytest.raises(DataError, match=r"m: this is a folder without .*but with 1 others"):
        find_files(["m"], "")
    with tarfile.open("b.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    Path("a.txt.bz2").write_bytes(bz2.compress(b"text"))
    for name in ("b.tar.gz", "a.txt.bz2"):
        with pytest.raises(DataError, match="this is an archive"):
            find_files([name], "")
