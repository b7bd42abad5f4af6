"""Shards of a data set: every token once, and no file of a run that fails."""

import errno
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupygpt import prepare
from cupygpt.data.token_files import open_shards
from cupygpt.data.token_format import TWO_BYTES
from cupygpt.data.token_record import put_in_place
from cupygpt.texts.writing.shard_writer import ShardSeries

BYTES = ["--tokenizer", "bytes"]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), max_size=8).filter(lambda sizes: sum(sizes) >= 2),
    shard_tokens=st.integers(2, 7),
)
def test_a_series_holds_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("series")
    tokens = np.arange(sum(sizes), dtype=np.uint16)
    series = ShardSeries(folder, "x", shard_tokens, TWO_BYTES)
    for piece in np.split(tokens, np.cumsum(sizes)[:-1]):
        series.write(piece, [piece.size] if piece.size else [])
    assert series.num_tokens == len(tokens)
    places = series.finish()
    put_in_place(places)
    shards = [shard for _, path in places for shard in open_shards(str(path))]
    np.testing.assert_array_equal(np.concatenate([s.tokens for s in shards]), tokens)
    assert all(shard.num_tokens >= 2 for shard in shards)
    assert len(list(folder.iterdir())) == len(shards)
    if all(size != 1 for size in sizes):
        assert all(shard_tokens <= s.num_tokens <= shard_tokens + 1 for s in shards[:-1])


class SmallDisk(io.FileIO):
    """A file on a disk that has `free` bytes left for all files together."""

    free = 0

    def write(self, data: Any, /) -> int:
        taken = min(len(data), SmallDisk.free)
        if taken == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        SmallDisk.free -= taken
        return super().write(data[:taken])


@pytest.fixture
def two_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two texts; files are written to a `SmallDisk`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("0123456789" * 3000)
    real_open = Path.open

    def small_open(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "xb":
            return io.BufferedWriter(SmallDisk(path, "x"))
        return real_open(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", small_open)
    return tmp_path


@pytest.mark.parametrize("fraction", ["0", "0.3"])
def test_a_full_disk_leaves_no_file_of_the_run(
    two_books: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fraction: str,
) -> None:
    args = [
        "[ab].txt",
        *BYTES,
        "--name",
        "x",
        "--shard-tokens",
        "14000",
        "--val-fraction",
        fraction,
    ]
    before = sorted(two_books.iterdir())
    monkeypatch.setattr(SmallDisk, "free", 10**6)
    assert prepare.main(args) == 0
    needed = 10**6 - SmallDisk.free
    for path in set(two_books.iterdir()) - set(before):
        path.unlink()
    # With one byte too few, only the last write of the last file fails.
    for free in [*range(0, needed, 5_000), needed - 1]:
        SmallDisk.free = free
        assert prepare.main(args) == 1
        error = capsys.readouterr().err
        assert re.search(
            r"x_(train|val)(_0\d*)?\.bin(\.json)?: could not be written \(No space left", error
        ), error
        assert sorted(two_books.iterdir()) == before, free


def test_a_full_disk_is_reported_for_the_file_that_did_not_fit(
    two_books: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first text fills a training file and a validation file, which stay open.
    monkeypatch.setattr(SmallDisk, "free", 75_000)
    assert prepare.main(["[ab].txt", *BYTES, "--name", "x", "--val-fraction", "0.1"]) == 1
    assert capsys.readouterr().err.startswith("error: x_train_000001.bin: could not be written")
    assert sorted(path.name for path in two_books.iterdir()) == ["a.txt", "b.txt"]
