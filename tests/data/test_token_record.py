"""Token files know their tokenizer: the record beside each file is exact, believed or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import write_ranks

from cupygpt import prepare
from cupygpt.data import token_record
from cupygpt.data.token_files import TokenShard, open_shards, record_path
from cupygpt.data.token_record import (
    TokenRecord,
    check_tokenizer,
    load_recorded_tokenizer,
    read_token_record,
)
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer, load_tokenizer
from cupygpt.errors import DataError, RunError, TokenizerError

TEXT = "Thé cat.\n" * 200


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT, encoding="utf-8")


def prepared(*arguments: str, tokenizer: str = "bytes") -> None:
    assert prepare.main([*arguments, "--tokenizer", tokenizer]) == 0


def known(pattern: str) -> tuple[list[TokenShard], TokenRecord]:
    shards = open_shards(pattern)
    record = read_token_record(shards)
    assert record
    return shards, record


def test_a_record_holds_tokenizer_text_and_split() -> None:
    prepared("a.txt")
    _, record = known("a_*.bin")
    tokenizer = ByteTokenizer()
    recorded = record.tokenizer
    assert (recorded.name, recorded.sha256) == ("bytes", tokenizer.sha256)
    assert (recorded.vocab_size, recorded.eot, recorded.file) == (257, 256, None)
    train, val = record.files
    assert train
    assert val
    size = len(TEXT.encode())
    assert (train.part, val.part) == ("train", "val")
    assert val.text_bytes == int(0.1 * size)
    assert train.text_bytes == size - val.text_bytes
    assert train.tokens == train.text_bytes + 1  # end of text
    assert train.documents == val.documents == 1
    assert train.origin == val.origin
    assert (train.origin.sources, train.origin.num_sources) == (["a.txt"], 1)
    assert train.origin.split == "the last 10 % of each document"
    assert load_recorded_tokenizer(recorded).encode("é").tolist() == [0xC3, 0xA9]


def test_the_bytes_of_text_of_all_files_are_those_of_the_text() -> None:
    ranks = write_ranks(Path("my.tiktoken"), [b"at", b" c", b"\xc3\xa9", b"cat"])
    for name in ("b", "c"):
        Path(f"{name}.txt").write_text(f"{name}: {TEXT}", encoding="utf-8")
    prepared("[abc].txt", "--shard-tokens", "900", "--name", "x", tokenizer=str(ranks))
    shards, record = known("x_*.bin")
    assert len(shards) > 3
    size = sum(len(Path(f"{name}.txt").read_bytes()) for name in "abc")
    assert sum(file.text_bytes for file in record.files if file) == size
    assert [file.tokens for file in record.files if file] == [s.num_tokens for s in shards]
    assert sum(file.documents for file in record.files if file) == 6  # three in either part


def test_a_tokenizer_from_a_file_is_copied_and_found_after_a_move() -> None:
    Path("there").mkdir()
    ranks = write_ranks(Path("there/my.tiktoken"), [b"at", b"cat"])
    prepared("a.txt", "-o", "data", tokenizer=str(ranks))
    ranks.unlink()
    Path("data").rename("moved")
    _, record = known("moved/a_train.bin")
    recorded = record.tokenizer
    assert (recorded.name, recorded.vocab_size) == ("my.tiktoken", 259)
    assert recorded.file == Path("moved/a_tokenizer.tiktoken")
    assert load_recorded_tokenizer(recorded).decode([256, 257]) == "atcat"
    write_ranks(recorded.file, [b"at", b"Cat"])
    with pytest.raises(TokenizerError, match=r"its content has changed .*SHA-256.*--tokenizer"):
        load_recorded_tokenizer(recorded)
    recorded.file.unlink()
    with pytest.raises(TokenizerError, match=r"a_tokenizer\.tiktoken: could not be read"):
        load_recorded_tokenizer(recorded)


def test_records_that_cannot_be_written_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = write_ranks(Path("my.tiktoken"), [b"at", b"cat"])
    real = token_record.partial_file

    def full(path: Path) -> Any:
        if path.name == "a_val.bin.json":
            raise RunError("the disk is full.")
        return real(path)

    monkeypatch.setattr(token_record, "partial_file", full)
    assert prepare.main(["a.txt", "--tokenizer", str(ranks)]) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a.txt", "my.tiktoken"]


def test_a_link_to_a_token_file_has_the_record_of_the_file() -> None:
    prepared("a.txt", "-o", "data")
    Path("link.bin").symlink_to("data/a_train.bin")
    _, record = known("link.bin")
    assert record.tokenizer.name == "bytes"


def test_the_built_in_texts_have_records_too() -> None:
    Path("play.txt").write_text("".join(f"Line {i}:\nwords\n\n" for i in range(3000)))
    prepared("tinyshakespeare", "--source", "play.txt")
    _, record = known("tiny_shakespeare_*.bin")
    assert record.files[1]
    assert record.files[1].origin.split == "the first 32,768 tokens"
    prepared("python-docs")
    _, record = known("python_docs_val.bin")
    assert record.files[0]
    assert record.files[0].origin.split == "every 20th document"
    assert record.files[0].documents > 5


def test_a_new_run_replaces_the_records_of_an_earlier_one() -> None:
    ranks = write_ranks(Path("my.tiktoken"), [b"at", b"cat"])
    prepared("a.txt", "--shard-tokens", "500", tokenizer=str(ranks))
    assert (
        sorted(path.name for path in Path().glob("a_*"))
        == [
            *(f"a_train_{i:06}.bin{end}" for i in (1, 2, 3) for end in ("", ".json")),
            "a_val.bin",
            "a_val.bin.json",
        ]
        or Path("a_tokenizer.tiktoken").exists()
    )
    prepared("a.txt", "--val-fraction", "0")
    assert sorted(path.name for path in Path().glob("a_*")) == ["a_train.bin", "a_train.bin.json"]
    _, record = known("a_train.bin")
    assert record.tokenizer.name == "bytes"


def test_files_without_a_record_are_no_error() -> None:
    write_shard(Path("old.bin"), np.arange(100))
    assert read_token_record(open_shards("old.bin")) is None
    prepared("a.txt")
    _, record = known("[ao]*.bin")
    assert [file is None for file in record.files] == [False, False, True]


def test_a_pattern_that_matches_records_takes_the_token_files_alone() -> None:
    prepared("a.txt")
    assert [shard.path.name for shard in open_shards("a_*")] == ["a_train.bin", "a_val.bin"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff{", b"[" * 10**5, b'{"version": 1}']
)
def test_a_damaged_record_is_named(content: bytes) -> None:
    prepared("a.txt")
    record_path(Path("a_val.bin")).write_bytes(content)
    with pytest.raises(DataError, match=r"a_val\.bin\.json: this token record is damaged .*delete"):
        read_token_record(open_shards("a_*.bin"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_of_a_record_is_noticed(data: st.DataObject) -> None:
    prepared("a.txt")
    path = record_path(Path("a_val.bin"))
    whole = path.read_bytes()
    before = json.loads(whole)
    at = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    try:
        same = json.loads(path.read_bytes()) == before  # white space, or 5e0 for 5.0
    except ValueError:
        same = False
    if same:
        assert read_token_record(open_shards("a_val.bin"))
        return
    with pytest.raises(DataError, match=r"a_val\.bin\.json: "):
        read_token_record(open_shards("a_val.bin"))


def test_a_record_of_a_newer_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cupygpt.data.token_record.VERSION", 2)
        prepared("a.txt")
    with pytest.raises(DataError, match=r"a token record of version 2; 1 is known"):
        read_token_record(open_shards("a_val.bin"))


@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (lambda tokens: tokens[:-3], r"it counts 93 tokens, the file has 90"),
        (lambda tokens: tokens[::-1], r"the number of tokens is the same, the content is not"),
    ],
)
def test_a_record_of_another_file_is_not_believed(
    rewrite: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    prepared("a.txt", "--val-fraction", "0.046")
    [shard] = open_shards("a_val.bin")
    tokens = np.array(shard.tokens)
    del shard
    write_shard(Path("a_val.bin"), rewrite(tokens))
    with pytest.raises(DataError, match=rf"describes another file than a_val\.bin: {message}"):
        read_token_record(open_shards("a_val.bin"))


def test_files_of_two_tokenizers_are_refused() -> None:
    prepared("a.txt", "--name", "x")
    for content, name in (([b"at", b"cat"], "y"), ([b"at", b"Cat"], "z")):
        ranks = write_ranks(Path("my.tiktoken"), content)
        prepared("a.txt", "--name", name, tokenizer=str(ranks))
    with pytest.raises(
        DataError,
        match=r"x_train\.bin was made with the tokenizer bytes \(257 ids\), y_train\.bin with "
        r"my\.tiktoken \(259 ids\)\. All files",
    ):
        read_token_record(open_shards("[xy]_train.bin"))
    with pytest.raises(DataError, match=r"my\.tiktoken \(259 ids\), which has other content"):
        read_token_record(open_shards("[yz]_train.bin"))


def test_another_tokenizer_than_the_recorded_one_is_refused() -> None:
    prepared("a.txt")
    shards, record = known("a_*.bin")
    check_tokenizer(load_tokenizer("bytes"), record, shards)
    ranks = write_ranks(Path("my.tiktoken"), [b"at"])
    with pytest.raises(
        TokenizerError, match=r"a_train\.bin was made with the tokenizer bytes .*, not with .*258"
    ):
        check_tokenizer(load_tokenizer(str(ranks)), record, shards)
