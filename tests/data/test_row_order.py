"""The order of the rows of an epoch: each row once, at random, and cheap however many there are."""

import itertools
import math
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupygpt.data import row_order as row_order_module
from cupygpt.data.loader import TrainLoader
from cupygpt.data.row_order import (
    COMPUTED,
    LISTED,
    ROUNDS,
    ROW_ORDERS,
    computed_rows,
    order_bytes,
    row_order,
)
from cupygpt.data.token_files import open_shards
from cupygpt.data.token_writer import write_shard


def order_of(num_rows: int, seed: int, kind: str = COMPUTED) -> np.ndarray:
    return row_order(kind, num_rows, np.random.RandomState(seed))(0, num_rows)


def first_tokens_of_two_epochs(folder: Path, order: str) -> list[int]:
    """Shard s holds tokens 1000 s, 1000 s + 1, ...: a token tells its place."""
    for s, length in enumerate((45, 30)):
        write_shard(folder / f"{s}.bin", 1000 * s + np.arange(length))
    shards = open_shards(str(folder / "*.bin"))
    loader = TrainLoader(shards, 1, 4, 65536, seed=1337, order=order)
    count = loader.rows_per_epoch(0) + loader.rows_per_epoch(1)
    return [int(loader.next_batch().inputs[0, 0]) for _ in range(count)]


FROZEN = {
    COMPUTED: [
        *(1022, 34, 22, 38, 1006, 10, 1002, 18, 26, 14, 1010, 1018, 1014, 30, 2, 6),
        *(38, 26, 1010, 6, 1022, 18, 34, 30, 14, 10, 1006, 1014, 1002, 2, 1018, 22),
    ],
    LISTED: [
        *(1006, 1022, 2, 14, 6, 34, 30, 1010, 38, 22, 18, 1018, 10, 26, 1014, 1002),
        *(18, 1014, 22, 6, 30, 38, 1022, 1002, 1006, 26, 1010, 14, 34, 10, 2, 1018),
    ],
}


@pytest.mark.parametrize("order", ROW_ORDERS)
def test_each_order_is_frozen(tmp_path: Path, order: str) -> None:
    """A run resumed years later, under another NumPy, must see these rows."""
    assert first_tokens_of_two_epochs(tmp_path, order) == FROZEN[order]


def test_a_list_that_is_too_long_has_a_frozen_order_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_order_module, "MOST_LISTED_ROWS", 15)
    assert first_tokens_of_two_epochs(tmp_path, LISTED) == [
        *(1014, 30, 22, 1010, 26, 2, 14, 34, 10, 6, 1002, 38, 1006, 18, 1018, 1022),
        *(2, 1022, 38, 1014, 1006, 22, 14, 26, 6, 30, 1018, 10, 34, 1010, 18, 1002),
    ]


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 20_000),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(ROW_ORDERS),
)
def test_every_row_comes_once(num_rows: int, seed: int, kind: str) -> None:
    np.testing.assert_array_equal(np.sort(order_of(num_rows, seed, kind)), np.arange(num_rows))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), kind=st.sampled_from(ROW_ORDERS))
def test_the_rows_at_a_place_do_not_depend_on_what_was_asked_before(
    data: st.DataObject, kind: str
) -> None:
    n = data.draw(st.integers(1, 9000))
    whole = order_of(n, 3, kind)
    order = row_order(kind, n, np.random.RandomState(3))
    for _ in range(5):
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        np.testing.assert_array_equal(order(start, stop), whole[start:stop])


def chi_square(counts: np.ndarray) -> float:
    """By how many standard deviations counts that should be equal differ more than by chance."""
    expected, freedom = counts.mean(), counts.size - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def test_few_rows_come_in_every_order() -> None:
    """All 24 orders of four rows are as likely, over many seeds."""
    orders = Counter(tuple(order_of(4, seed).tolist()) for seed in range(720))
    counts = np.array([orders[order] for order in itertools.permutations(range(4))])
    assert abs(chi_square(counts)) < 4


@pytest.mark.parametrize("num_rows", [5, 6, 7, 64])
def test_each_row_comes_at_each_place_and_after_each_other(num_rows: int) -> None:
    orders = np.array([order_of(num_rows, seed) for seed in range(400)])
    places = np.array([np.bincount(column, minlength=num_rows) for column in orders.T])
    assert abs(chi_square(places)) < 4
    for apart in (1, 2):
        steps = (orders[:, apart:] - orders[:, :-apart]) % num_rows
        assert abs(chi_square(np.bincount(steps.ravel(), minlength=num_rows)[1:])) < 4


def test_many_rows_show_no_pattern() -> None:
    """Even spread, no tie to the place, to the neighbour, or to the order of another seed."""
    n, limit = 100_000, 5 / math.sqrt(100_000)  # five standard deviations of a correlation
    first, second = order_of(n, 1), order_of(n, 2)
    for one, other in ((first, np.arange(n)), (first, second), (first[1:], first[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < limit
    assert abs(chi_square(np.bincount(first[: n // 10] // 1000, minlength=100))) < 5
    width = -(-n // (math.isqrt(n - 1) + 1))  # the columns of the grid that the rows lie in
    assert abs(chi_square(np.bincount(first[: n // 10] % width))) < 5
    neighbours = np.abs(np.diff(first)) == 1
    assert neighbours.sum() < 12  # 2 expected


def test_the_borders_of_the_grid_are_rows_like_others() -> None:
    """Around squares, where a row or a column more begins."""
    keys = np.random.RandomState(0).randint(0, 2**32, ROUNDS, dtype=np.uint32)
    for n in (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 13, 4095, 4096, 4097):
        assert sorted(computed_rows(np.arange(n), n, keys).tolist()) == list(range(n))


@pytest.mark.parametrize("T", [8, 1024])
def test_a_file_of_4_gib_costs_no_memory(tmp_path: Path, T: int) -> None:
    """At T 8 it has 268 million rows."""
    path = tmp_path / "large.bin"
    num_tokens = 2**31 - 1
    write_shard(path, [1, 2])
    with path.open("r+b") as file:
        file.seek(8)
        file.write(num_tokens.to_bytes(4, "little"))
        file.truncate(1024 + 2 * num_tokens)  # sparse: it takes no room
    loader = TrainLoader(open_shards(str(path)), 4, T, 65536, seed=0)
    assert loader.rows_per_epoch(0) >= (num_tokens - T) // T
    tracemalloc.start()
    try:
        for _ in range(3):
            loader.next_batch()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_only_a_list_takes_memory() -> None:
    assert order_bytes(COMPUTED, 1000) == 0
    assert order_bytes(LISTED, 1000) == 4000
    assert order_bytes(LISTED, 2**24 + 1) == 0
