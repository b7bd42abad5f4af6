"""Token files are written in llm.c's layout, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from cupygpt.data import token_writer
from cupygpt.data.token_writer import shard_writer, write_shard
from cupygpt.errors import DataError, RunError


def test_the_layout_is_that_of_llmc(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 2, 65535]))
    header = np.array([20240520, 1, 3, *[0] * 253], dtype="<i4")
    assert path.read_bytes() == header.tobytes() + b"\x01\x00\x02\x00\xff\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_pieces_equal_the_whole(tmp_path: Path) -> None:
    write_shard(tmp_path / "whole.bin", np.arange(10))
    with shard_writer(tmp_path / "pieces.bin") as append:
        for piece in (np.arange(3), [], range(3, 9), np.array([9], np.int64)):
            append(piece)
    assert (tmp_path / "pieces.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([1, 65536]), "1 to 65536"),
        (np.array([-1, 5]), "-1 to 5"),
        (np.array([1.0, 2.0]), "integers"),
        (np.zeros((2, 2), int), "one-dimensional"),
        (np.array([7]), "at least 2"),
        (np.array([], np.uint16), "at least 2"),
    ],
)
def test_unwritable_tokens_leave_the_old_file(
    tmp_path: Path, tokens: np.ndarray, message: str
) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, [1, 2])
    before = path.read_bytes()
    with pytest.raises(DataError, match=message):
        write_shard(path, tokens)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_count_must_fit_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_writer, "MAX_TOKENS", 3)
    with pytest.raises(DataError, match=r"at most 3 tokens.*--shard-tokens"):
        write_shard(tmp_path / "a.bin", np.arange(4))


def test_a_folder_that_is_not_there_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not be written"):
        write_shard(tmp_path / "no" / "a.bin", [1, 2])
