"""The rows of a validation: the same for any batch, any number of ranks, any resume."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cupygpt.data.token_files import TokenShard, open_shards
from cupygpt.data.token_writer import write_shard
from cupygpt.data.validation import ValidationBatches, ValidationRows
from cupygpt.errors import DataError

V = 1000


def make_shards(folder: Path, lengths: Sequence[int]) -> list[TokenShard]:
    """Shard s holds tokens 100 s, 100 s + 1, ...: a token tells its place."""
    for s, length in enumerate(lengths):
        write_shard(folder / f"{s:03}.bin", 100 * s + np.arange(length))
    return open_shards(str(folder / "*.bin"))


def first_tokens(rows: ValidationRows, B: int, num_ranks: int = 1) -> list[int]:
    """The first token of each row, in the order of one rank."""
    everyone = [
        list(ValidationBatches(rows, B, V, rank=rank, num_ranks=num_ranks))
        for rank in range(num_ranks)
    ]
    batches = [batch for of_ranks in zip(*everyone, strict=True) for batch in of_ranks]
    return [int(token) for inputs, _, n in batches for token in inputs[:n, 0]]


def test_all_rows_are_read_once(tmp_path: Path) -> None:
    rows = ValidationRows(make_shards(tmp_path, [22, 4, 9]), 4, None, evenly=False)
    batches = ValidationBatches(rows, 3, V)
    assert (rows.num_rows, rows.num_tokens, len(batches)) == (7, 28, 3)
    for _ in range(2):  # Each iteration gives the same.
        got = list(batches)
        assert [num_rows for _, _, num_rows in got] == [3, 3, 1]
        firsts = [int(x) for inputs, _, n in got for x in inputs[:n, 0]]
        assert firsts == [0, 4, 8, 12, 16, 200, 204]
    inputs, targets, _ = got[-1]
    np.testing.assert_array_equal(inputs, [[204, 205, 206, 207], [0, 1, 2, 3], [0, 1, 2, 3]])
    np.testing.assert_array_equal(targets, [[205, 206, 207, 208], [-1] * 4, [-1] * 4])
    assert inputs.dtype == targets.dtype == np.int32


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("B", [1, 2, 5, 64])
@pytest.mark.parametrize(
    ("count", "evenly", "expected"),
    [
        (4, False, [0, 4, 8, 12]),
        (4, True, [0, 8, 100, 108]),
        (99, True, [0, 4, 8, 12, 100, 104, 108, 112]),
    ],
)
def test_batch_and_ranks_do_not_choose_the_rows(
    tmp_path: Path, count: int, evenly: bool, expected: list[int], B: int, num_ranks: int
) -> None:
    rows = ValidationRows(make_shards(tmp_path, [17, 17]), 4, count, evenly=evenly)
    assert first_tokens(rows, B, num_ranks) == expected


def test_ranks_take_the_batches_in_turn(tmp_path: Path) -> None:
    rows = ValidationRows(make_shards(tmp_path, [41]), 4, None, evenly=False)
    ranks = [ValidationBatches(rows, 2, V, rank=r, num_ranks=3) for r in range(3)]
    assert [len(rank) for rank in ranks] == [2, 2, 2]
    got = [[(inputs[:n, 0].tolist(), n) for inputs, _, n in rank] for rank in ranks]
    assert got == [
        [([0, 4], 2), ([24, 28], 2)],
        [([8, 12], 2), ([32, 36], 2)],
        [([16, 20], 2), ([], 0)],
    ]


def test_a_file_of_one_row_fills_any_batch(tmp_path: Path) -> None:
    rows = ValidationRows(make_shards(tmp_path, [41]), 40, 20, evenly=True)
    [(inputs, targets, num_rows)] = ValidationBatches(rows, 64, V)
    assert inputs.shape == targets.shape == (64, 40)
    assert num_rows == 1


def test_what_cannot_be_validated_is_refused(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [41])
    with pytest.raises(DataError, match="at least 1"):
        ValidationRows(shards, 4, 0, evenly=False)
    with pytest.raises(DataError, match=r"41 tokens, but one row takes 42 .* Use -t 40 or less"):
        ValidationRows(shards, 41, None, evenly=False)
    with pytest.raises(DataError, match="token 8 is id 8"):
        list(ValidationBatches(ValidationRows(shards, 4, None, evenly=False), 2, 8))
