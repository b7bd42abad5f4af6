"""The loader: every row once per epoch, resumable anywhere, llm.c's order without shuffling."""

import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupygpt.data import loader as loader_module
from cupygpt.data.loader import Batch, Position, Prefetcher, TrainLoader
from cupygpt.data.token_files import TokenShard, open_shards
from cupygpt.data.token_writer import write_shard
from cupygpt.errors import DataError

V = 65536


def make_shards(folder: Path, lengths: Sequence[int], stride: int = 100) -> list[TokenShard]:
    """Shard s holds tokens stride * s, stride * s + 1, ...: a token tells its place."""
    for s, length in enumerate(lengths):
        write_shard(folder / f"{s:03}.bin", stride * s + np.arange(length))
    return open_shards(str(folder / "*.bin"))


def take(loader: TrainLoader, count: int) -> list[Batch]:
    return [loader.next_batch() for _ in range(count)]


def first_tokens(batches: Sequence[Batch]) -> list[int]:
    return [int(token) for batch in batches for token in batch.inputs[:, 0]]


def test_targets_are_the_inputs_shifted_by_one(tmp_path: Path) -> None:
    loader = TrainLoader(make_shards(tmp_path, [500]), 3, 8, V, seed=1)
    batch = loader.next_batch()
    for array in (batch.inputs, batch.targets):
        assert array.shape == (3, 8)
        assert array.dtype == np.int32
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    np.testing.assert_array_equal(batch.targets[:, -1], batch.inputs[:, -1] + 1)
    assert loader.position == Position(0, 3)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=4),
    T=st.integers(1, 12),
    B=st.integers(1, 9),
    num_ranks=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_each_epoch_visits_every_row_once(
    lengths: list[int], T: int, B: int, num_ranks: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), lengths)
        if max(lengths) < T + 1:
            with pytest.raises(DataError, match=f"the longest file has {max(lengths)} tokens"):
                TrainLoader(shards, B, T, V, seed=seed)
            return
        epochs = read_epochs(shards, 3, B, T, num_ranks, seed)
        for epoch in epochs:
            for s, length in enumerate(lengths):
                starts = sorted(token - 100 * s for token in epoch if token // 100 == s)
                assert len(starts) >= (1 if length >= T + 1 else 0)
                assert len(starts) >= (length - T) // T
                if starts:
                    assert 0 <= starts[0] < T
                    assert starts == list(range(starts[0], starts[0] + T * len(starts), T))
                    assert starts[-1] + T + 1 <= length < starts[-1] + 2 * T + 1


def read_epochs(
    shards: list[TokenShard], num_epochs: int, B: int, T: int, num_ranks: int, seed: int
) -> list[list[int]]:
    """First tokens of the rows of each epoch, in the order in which all ranks consume them."""
    loaders = [
        TrainLoader(shards, B, T, V, seed=seed, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    sizes = [loaders[0].rows_per_epoch(epoch) for epoch in range(num_epochs)]
    stream: list[int] = []
    while len(stream) < sum(sizes):
        stream += first_tokens([loader.next_batch() for loader in loaders])
        assert len({loader.position for loader in loaders}) == 1
    ends = np.cumsum([0, *sizes]).tolist()
    return [stream[start:end] for start, end in itertools.pairwise(ends)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_position_splits_the_rows_exactly_for_any_batch_and_ranks(data: st.DataObject) -> None:
    """Whatever consumes the rows, their order is one stream that a position splits exactly."""
    with tempfile.TemporaryDirectory() as folder:
        lengths = data.draw(st.lists(st.integers(9, 80), min_size=1, max_size=3))
        T = data.draw(st.integers(1, 8))
        shards = make_shards(Path(folder), lengths)
        single = TrainLoader(shards, 1, T, V, seed=5)
        stream = first_tokens(take(single, 120))
        done = 0
        position = Position(0, 0)
        while done < 60:
            B, num_ranks = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
            loaders = [
                TrainLoader(shards, B, T, V, seed=5, rank=r, num_ranks=num_ranks, position=position)
                for r in range(num_ranks)
            ]
            for _ in range(data.draw(st.integers(1, 3))):
                batches = [loader.next_batch() for loader in loaders]
                step = B * num_ranks
                assert first_tokens(batches) == stream[done : done + step]
                done += step
                position = loaders[0].position
                assert {loader.position for loader in loaders} == {position}
        before = sum(single.rows_per_epoch(e) for e in range(position.epoch))
        assert before + position.rows == done


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_rows_before_a_position_are_those_that_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shuffle: bool
) -> None:
    loader = TrainLoader(make_shards(tmp_path, [30, 41]), 3, 5, V, seed=1, shuffle=shuffle)
    for batches in range(1, 30):  # more than six epochs
        loader.next_batch()
        assert loader.rows_before(loader.position) == 3 * batches
    monkeypatch.setattr(loader_module, "MOST_COUNTED_EPOCHS", 2)
    assert abs(loader.rows_before(loader.position) - 3 * 29) <= 2 * loader.position.epoch


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [2000])
    first, second, third = read_epochs(shards, 3, 1, 16, 1, seed=3)
    assert sorted(first) != sorted(second)  # Another cut.
    assert len({tuple(epoch) for epoch in (first, second, third)}) == 3
    assert first != sorted(first)
    assert read_epochs(shards, 1, 1, 16, 1, seed=3) == [first]
    for other in (4, 3 + 2**32):
        assert read_epochs(shards, 1, 1, 16, 1, seed=other) != [first]


def test_the_cut_covers_all_offsets_evenly(tmp_path: Path) -> None:
    loader = TrainLoader(make_shards(tmp_path, [100]), 1, 4, V, seed=0)
    offsets = Counter(int(loader._cut_epoch(epoch).starts[0]) for epoch in range(400))
    assert sorted(offsets) == [0, 1, 2, 3]
    assert min(offsets.values()) > 60  # 100 expected, standard deviation 8.7.


def test_a_batch_may_span_several_epochs(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [9])  # 1 or 2 rows an epoch.
    single = TrainLoader(shards, 1, 4, V, seed=2)
    large = TrainLoader(shards, 7, 4, V, seed=2)
    assert first_tokens([large.next_batch()]) == first_tokens(take(single, 7))
    assert large.position == single.position


def test_the_end_of_an_epoch_is_the_start_of_the_next(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [50])
    num_rows = TrainLoader(shards, 1, 4, V, seed=0).rows_per_epoch(0)
    loader = TrainLoader(shards, 1, 4, V, seed=0, position=Position(0, num_rows))
    assert loader.position == Position(1, 0)
    with pytest.raises(DataError, match=f"row {num_rows + 1} of epoch 0, .* has {num_rows} rows"):
        TrainLoader(shards, 1, 4, V, seed=0, position=Position(0, num_rows + 1))
    with pytest.raises(DataError, match="cannot be negative"):
        TrainLoader(shards, 1, 4, V, seed=0, position=Position(0, -1))


def test_the_unshuffled_order_is_that_of_llmc(tmp_path: Path) -> None:
    """Shards of 13, 9 and 10 tokens, B 1, T 4: 3, 2 and 2 samples, tails dropped, then again."""
    loader = TrainLoader(make_shards(tmp_path, [13, 9, 10]), 1, 4, V, seed=0, shuffle=False)
    assert first_tokens(take(loader, 7)) == [0, 4, 8, 100, 104, 200, 204]
    assert loader.position == Position(1, 0)
    assert first_tokens(take(loader, 2)) == [0, 4]
    assert loader.rows_per_epoch(0) == loader.rows_per_epoch(5) == 7


def test_unshuffled_ranks_read_the_rows_of_llmc_ranks(tmp_path: Path) -> None:
    """Rank r of sample i starts at token i * R * B * T + r * B * T."""
    shards = make_shards(tmp_path, [27, 17], stride=1000)
    pair = [
        TrainLoader(shards, 2, 2, V, seed=0, shuffle=False, rank=r, num_ranks=2) for r in (0, 1)
    ]
    got = [[first_tokens([loader.next_batch()]) for loader in pair] for _ in range(6)]
    assert got == [
        [[0, 2], [4, 6]],
        [[8, 10], [12, 14]],
        [[16, 18], [20, 22]],
        [[1000, 1002], [1004, 1006]],
        [[1008, 1010], [1012, 1014]],
        [[0, 2], [4, 6]],
    ]


def test_an_unshuffled_loader_resumes_with_another_batch_size(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [33])
    loader = TrainLoader(shards, 2, 4, V, seed=0, shuffle=False)
    loader.next_batch()
    resumed = TrainLoader(shards, 4, 4, V, seed=0, shuffle=False, position=loader.position)
    assert first_tokens([resumed.next_batch()]) == [8, 12, 16, 20]
    over = TrainLoader(shards, 5, 4, V, seed=0, shuffle=False, position=Position(2, 6))
    assert over.position == Position(3, 0)


def test_each_shard_needs_a_whole_unshuffled_batch(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [33, 32])
    with pytest.raises(DataError, match=r"001\.bin: 32 tokens, .* takes 33 .*--no-shuffle"):
        TrainLoader(shards, 2, 4, V, seed=0, shuffle=False, num_ranks=4)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_bad_id_is_named(tmp_path: Path, *, shuffle: bool) -> None:
    tokens = np.zeros(41, int)
    tokens[30] = 400
    write_shard(tmp_path / "a.bin", tokens)
    loader = TrainLoader(open_shards(str(tmp_path / "a.bin")), 1, 4, 257, seed=0, shuffle=shuffle)
    with pytest.raises(DataError, match=r"a\.bin: token 30 is id 400"):
        take(loader, loader.rows_per_epoch(0))


@pytest.mark.parametrize(
    "arguments",
    [{"B": 0}, {"T": 0}, {"rank": 2, "num_ranks": 2}, {"rank": -1}, {"seed": -1}, {"seed": 2**64}],
)
def test_impossible_arguments_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    shards = make_shards(tmp_path, [50])
    with pytest.raises(DataError, match=r"at least"):
        TrainLoader(shards, **{"B": 1, "T": 4, "V": V, "seed": 0, **arguments})


def test_a_loader_needs_a_token_file() -> None:
    with pytest.raises(DataError, match="no token files"):
        TrainLoader([], 1, 4, V, seed=0)


def test_prefetching_changes_nothing(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [300])
    plain = TrainLoader(shards, 4, 8, V, seed=9)
    with Prefetcher(TrainLoader(shards, 4, 8, V, seed=9, position=Position(0, 0))) as ahead:
        assert ahead.position == Position(0, 0)
        for _ in range(30):
            want, got = plain.next_batch(), ahead.next_batch()
            np.testing.assert_array_equal(got.inputs, want.inputs)
            np.testing.assert_array_equal(got.targets, want.targets)
            assert ahead.position == plain.position


class CountingSource:
    """Gives `good` batches, then fails; counts how many were asked for."""

    def __init__(self, good: int) -> None:
        self.position = Position(0, 0)
        self.good = good
        self.asked = 0

    def next_batch(self) -> Batch:
        self.asked += 1
        if self.asked > self.good:
            raise DataError("the disk is gone.")
        self.position = Position(0, self.asked)
        ids = np.full((1, 1), self.asked, np.int32)
        return Batch(ids, ids)


def test_a_failure_comes_at_its_batch_and_stays() -> None:
    with Prefetcher(CountingSource(3)) as ahead:
        for count in (1, 2, 3):
            assert ahead.next_batch().inputs.item() == count
            assert ahead.position == Position(0, count)
        for _ in range(2):
            with pytest.raises(DataError, match="the disk is gone"):
                ahead.next_batch()
        assert ahead.position == Position(0, 3)


def test_it_reads_a_few_batches_ahead_and_stops() -> None:
    before = threading.active_count()
    source = CountingSource(10**9)
    ahead = Prefetcher(source)
    deadline = time.monotonic() + 5
    while source.asked < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert source.asked == 3  # Two ready, one waiting for room.
    ahead.close()
    ahead.close()
    assert threading.active_count() == before
    with pytest.raises(AssertionError, match="after close"):
        ahead.next_batch()
