"""The order of the rows of an epoch: each row once, at random, and cheap however many there are."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cupygpt.data import rows
from cupygpt.data.loader import TrainLoader
from cupygpt.data.rows import order_bytes, random_order
from cupygpt.data.token_files import open_shards, write_shard


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 16, 1000, 4097])
def test_very_many_rows_come_once_each(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_LISTED_ROWS", 0)
    order = random_order(num_rows, np.random.RandomState(3))
    whole = order(0, num_rows)
    assert sorted(whole.tolist()) == list(range(num_rows))
    parts = [order(start, min(start + 5, num_rows)) for start in range(0, num_rows, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_order_of_very_many_rows_looks_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its places are spread evenly, neighbours are unrelated, and another seed gives another."""
    monkeypatch.setattr(rows, "MOST_LISTED_ROWS", 0)
    n, limit = 100_000, 5 / np.sqrt(100_000)  # five standard deviations of a correlation
    places = np.arange(n)
    first, second = (random_order(n, np.random.RandomState(seed))(0, n) for seed in (1, 2))
    for one, other in ((first, places), (first, second), (first[1:], first[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < limit
    counts = np.bincount(first[: n // 10] // 1000, minlength=100)  # 100 expected in each
    assert counts.min() > 50
    assert counts.max() < 150


def test_very_many_rows_take_no_memory_and_no_time(tmp_path: Path) -> None:
    """4 GiB at T 8 are 268 million rows; listing them took 1 GiB and most of a minute."""
    path = tmp_path / "large.bin"
    write_shard(path, [1, 2])
    num_tokens = 2**31 - 1
    with path.open("r+b") as file:
        file.seek(8)
        file.write(num_tokens.to_bytes(4, "little"))
        file.truncate(1024 + 2 * num_tokens)  # sparse: it takes no room
    loader = TrainLoader(open_shards(str(path)), 4, 8, 65536, seed=0)
    assert loader.rows_per_epoch(0) > 268_000_000
    assert order_bytes(loader.rows_per_epoch(0)) == 0
    assert order_bytes(1000) == 4000
    tracemalloc.start()
    try:
        for _ in range(3):
            loader.next_batch()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
