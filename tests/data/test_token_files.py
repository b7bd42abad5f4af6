"""Token files: what is written is read back, and nothing damaged is ever taken for data."""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupygpt.data import token_files
from cupygpt.data.token_files import (
    check_ids,
    fingerprint,
    largest_id,
    open_shards,
    share_to_hash,
    token_blocks,
)
from cupygpt.data.token_writer import write_shard
from cupygpt.errors import DataError


def header(*words: int) -> bytes:
    return np.array([*words, *[0] * (256 - len(words))], dtype="<i4").tobytes()


def test_tokens_come_back_as_read_only_uint16(tmp_path: Path) -> None:
    tokens = np.arange(1000, dtype=np.uint16) * 65
    write_shard(tmp_path / "a.bin", tokens)
    [shard] = open_shards(str(tmp_path / "a.bin"))
    assert (shard.path, shard.num_tokens) == (tmp_path / "a.bin", 1000)
    assert shard.tokens.dtype == np.uint16
    np.testing.assert_array_equal(shard.tokens, tokens)
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 1


def test_globs_are_sorted_by_byte_value(tmp_path: Path) -> None:
    names = ["b.bin", "B.bin", "a10.bin", "a2.bin", "é.bin"]
    for name in names:
        write_shard(tmp_path / name, [1, 2])
    (tmp_path / "folder.bin").mkdir()
    found = [shard.path.name for shard in open_shards(str(tmp_path / "*.bin"))]
    assert found == sorted(names, key=lambda name: name.encode())


def test_a_path_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    write_shard(tmp_path / "a[1].bin", [1, 2, 3])
    write_shard(tmp_path / "a1.bin", [1, 2])
    [shard] = open_shards(str(tmp_path / "a[1].bin"))
    assert shard.num_tokens == 3


def test_two_stars_stand_for_any_number_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b" / "c d" / "e").mkdir(parents=True)
    names = ["b/1.bin", "b/c d/2.bin", "b/c d/e/3.bin"]
    for name in names:
        write_shard(tmp_path / name, [1, 2])
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    for pattern in ("b/**/*.bin", str(tmp_path / "b" / "**" / "*.bin"), "**/*.bin"):
        found = [
            shard.path.relative_to(tmp_path) if shard.path.is_absolute() else shard.path
            for shard in open_shards(pattern)
        ]
        assert [path.as_posix() for path in found] == names
    assert [shard.path.name for shard in open_shards("b/*/*.bin")] == ["2.bin", "1.bin"]


def test_a_folder_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    for folder in ("a[1]", "a1"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        write_shard(tmp_path / folder / "deep" / "x.bin", [1, 2])
    for pattern in ("*/*.bin", "**/*.bin"):
        [shard] = open_shards(str(tmp_path / "a[1]" / pattern))
        assert shard.path == tmp_path / "a[1]" / "deep" / "x.bin"


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_shard(tmp_path / "a.bin", [1, 2])
    for pattern in ("~/a.bin", "~/*.bin"):
        [shard] = open_shards(pattern)
        assert shard.path == tmp_path / "a.bin"
    with pytest.raises(DataError, match=r"~nobody-here/a\.bin: no such file"):
        open_shards("~nobody-here/a.bin")


def test_what_is_no_file_is_refused_and_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.bin"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(writer, bytes(4096))  # a reader would read this, and not wait for ever
        for pattern in (str(fifo), str(tmp_path / "*.bin")):
            with pytest.raises(DataError, match=r"fifo\.bin: this is a FIFO .*into a file first"):
                open_shards(pattern)
        with pytest.raises(DataError, match="/dev/null: this is a device, not a file"):
            open_shards("/dev/null")
        assert len(os.read(writer, 8192)) == 4096
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, but the header alone has 1,024"),
        (
            b"First Citizen:\n" * 100,
            r"this is not a GPT-2 token file .*text.*cupygpt\.prepare \S*a\.bin$",
        ),
        (
            np.arange(200, 1000, dtype="<u2").tobytes(),  # nanoGPT's files have no header
            r"this is not a GPT-2 token file .*nanoGPT.*cupygpt\.prepare \S*a\.bin --headerless",
        ),
        (header(20240326, 3), r"this is a model, not a GPT-2 token file .*20240326, .*20240520"),
        (header(20240801, 3, 2) + bytes(8), "version 3; only version 7"),
        (header(20240801, 7, 3) + bytes(6), "1,030 bytes, .* 3 tokens, .* 1,036 bytes"),
        (header(20240520, 2, 2) + bytes(4), "version 2; only version 1"),
        (header(20240520, 1, 0), r"counts 0 token\(s\)"),
        (header(20240520, 1, 1) + bytes(2), r"counts 1 token\(s\)"),
        (header(20240520, 1, -5), r"counts -5 token\(s\)"),
        (header(20240520, 1, 3) + bytes(4), "1,028 bytes, .* counts 3 tokens, .* 1,030 bytes"),
        (header(20240520, 1, 3) + bytes(8), "1,032 bytes, .* 1,030 bytes"),
    ],
)
def test_a_file_that_is_no_token_file_is_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_shards(str(path))
    assert str(path) in str(caught.value)


def test_a_folder_or_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file, .*cupygpt\.prepare"):
        open_shards(str(tmp_path / "*.bin"))
    with pytest.raises(DataError, match="is a folder"):
        open_shards(str(tmp_path))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_noticed_or_harmless(data: st.DataObject) -> None:
    """One flipped byte or a cut at any length: a DataError, or only that token differs."""
    tokens = np.arange(5, 25, dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        write_shard(path, tokens)
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.booleans()):
            path.write_bytes(whole[:at])
            with pytest.raises(DataError):
                open_shards(str(path))
            return
        flip = data.draw(st.integers(1, 255))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        if at < 12:
            with pytest.raises(DataError):
                open_shards(str(path))
            return
        [shard] = open_shards(str(path))
        differing = np.flatnonzero(shard.tokens != tokens)
        assert differing.tolist() == ([(at - 1024) // 2] if at >= 1024 else [])
        del shard


def test_a_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(100))
    [shard] = open_shards(str(tmp_path / "a.bin"))
    write_shard(tmp_path / "a.bin", np.arange(50))
    with pytest.raises(DataError, match="changed during the run"):
        _ = shard.tokens


def test_more_shards_can_be_read_than_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "MAX_MAPPED", 2)
    for i in range(5):
        write_shard(tmp_path / f"{i}.bin", [i, i])
    opened = open_shards(str(tmp_path / "*.bin"))
    assert [int(shard.tokens[0]) for shard in opened * 2] == [0, 1, 2, 3, 4] * 2


def test_ids_beyond_the_vocabulary_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "SCAN_BLOCK_TOKENS", 8)
    write_shard(tmp_path / "a.bin", np.zeros(10, int))
    tokens = np.zeros(30, int)
    tokens[21] = 300
    write_shard(tmp_path / "b.bin", tokens)
    opened = open_shards(str(tmp_path / "*.bin"))
    check_ids(opened, 301)
    check_ids(opened, 65536)
    with pytest.raises(DataError, match=r"b\.bin: token 21 is id 300, .* 257 ids \(0 to 256\)"):
        check_ids(opened, 257)
    monkeypatch.setattr(token_files, "SCAN_BUDGET_TOKENS", 30)
    check_ids(opened, 257)  # Over the budget: the first 15 tokens of each.
    monkeypatch.setattr(token_files, "SCAN_BUDGET_TOKENS", 39)
    check_ids(opened, 257)
    monkeypatch.setattr(token_files, "SCAN_BUDGET_TOKENS", 40)
    with pytest.raises(DataError, match="token 21"):
        check_ids(opened, 257)


def test_looking_at_all_ids_maps_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a gigabyte of mapped pages would count as memory of the process."""
    write_shard(tmp_path / "a.bin", np.arange(100))

    def mapped(path: Path, num_tokens: int) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(token_files, "_map_tokens", mapped)
    monkeypatch.setattr(token_files, "SCAN_BLOCK_TOKENS", 8)
    opened = open_shards(str(tmp_path / "a.bin"))
    check_ids(opened, 100)
    assert largest_id(opened) == 99
    assert [int(block[0]) for block in token_blocks(opened[0], 20)] == [0, 8, 16]
    with (tmp_path / "a.bin").open("r+b") as file:
        file.truncate(1024 + 60)
    with pytest.raises(DataError, match="cut short while it was read"):
        check_ids(opened, 100)


def test_the_fingerprint_of_a_small_file_is_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(50))
    assert fingerprint(open_shards(str(path))) == [
        {
            "name": "a.bin",
            "tokens": 50,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "hashed": "all",
        }
    ]


def test_the_fingerprint_of_a_large_file_hashes_samples_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "FULL_HASH_BYTES", 4096)
    monkeypatch.setattr(token_files, "SAMPLED_BLOCK_BYTES", 16)
    path = tmp_path / "a.bin"

    def digest(tokens: np.ndarray) -> str:
        write_shard(path, tokens)
        [record] = fingerprint(open_shards(str(path)))
        assert record["hashed"] == "sampled"
        return record["sha256"]

    tokens = np.arange(10_000)
    original = digest(tokens)
    assert original == digest(tokens)
    assert original != digest(np.append(tokens, 0))
    for changed in (slice(-1, None), slice(2000, 3000)):
        other = tokens.copy()
        other[changed] += 1
        assert original != digest(other)


def test_very_many_files_are_known_by_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files of 2,024 bytes: all of them while that is not much, else the first and last."""
    monkeypatch.setattr(token_files, "SAMPLED_BLOCK_BYTES", 1100)
    for i in range(3):
        write_shard(tmp_path / f"{i}.bin", np.arange(500))
    shards = open_shards(str(tmp_path / "*.bin"))
    monkeypatch.setattr(token_files, "MOST_HASHED_BYTES", 3 * 2024)
    assert [file["hashed"] for file in fingerprint(shards)] == ["all"] * 3
    assert share_to_hash(shards) == 1
    monkeypatch.setattr(token_files, "MOST_HASHED_BYTES", 3 * 2024 - 1)
    assert share_to_hash(shards) == 2
    before = fingerprint(shards)
    assert [file["hashed"] for file in before] == ["ends"] * 3
    first = (tmp_path / "0.bin").read_bytes()
    expected = hashlib.sha256((2024).to_bytes(8, "little") + first[:1100] + first[-1100:])
    assert before[0]["sha256"] == expected.hexdigest()
    assert [file["hashed"] for file in fingerprint(shards, ["all", "sampled", "ends"])] == [
        *("all", "sampled", "ends")
    ]
    write_shard(tmp_path / "1.bin", np.append(np.arange(499), 7))
    after = fingerprint(open_shards(str(tmp_path / "*.bin")))
    assert [now == then for now, then in zip(after, before, strict=True)] == [True, False, True]
