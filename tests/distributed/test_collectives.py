"""Sums and gathers over the ranks, without a GPU; those of NCCL are in runs/test_multi_gpu.py."""

from typing import Any

import numpy as np
import pytest
from support.rank_threads import run_ranks

from cupygpt.device.cpu import CPU
from cupygpt.distributed import sockets
from cupygpt.distributed.collectives import make_collectives


def test_sums_and_gathers_over_sockets() -> None:
    def compute(ranks: Any) -> Any:
        collectives = make_collectives(CPU(), ranks)
        a = np.full(3, 1.5 + ranks.rank, np.float32)
        b = np.full((2, 2), 10.0 * ranks.rank, np.float32)
        collectives.all_reduce_async([a, b])
        collectives.wait()
        whole = np.zeros(6, np.float32)
        own = slice(2 * ranks.rank, 2 * ranks.rank + 2)
        whole[own] = ranks.rank + 1
        collectives.all_gather(whole, own.start, own.stop)
        return a, b, whole

    for a, b, whole in run_ranks(3, compute):
        assert a.tolist() == [7.5] * 3
        assert b.tolist() == [[30.0, 30.0], [30.0, 30.0]]
        assert whole.tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("piece", [1, 3, 4, 100])
def test_arrays_travel_in_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """However they are cut, the sums have the same bits."""
    monkeypatch.setattr(sockets, "PIECE", piece)

    def compute(ranks: Any) -> Any:
        rng = np.random.default_rng(ranks.rank)
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 2), 0, 5, 1)]
        addends = [array.copy() for array in arrays]
        whole = np.zeros(9, np.uint16)
        whole[3 * ranks.rank : 3 * ranks.rank + 3] = 7 + ranks.rank
        collectives = make_collectives(CPU(), ranks)
        collectives.all_reduce_async(arrays)
        collectives.all_gather(whole, 3 * ranks.rank, 3 * ranks.rank + 3)
        return arrays, addends, whole

    results = run_ranks(3, compute)
    wanted = [a + b + c for a, b, c in zip(*(addends for _, addends, _ in results), strict=True)]
    for arrays, _, whole in results:
        for array, sums in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(array, sums)
        assert whole.tolist() == [7, 7, 7, 8, 8, 8, 9, 9, 9]


def test_one_rank_changes_nothing() -> None:
    def compute(ranks: Any) -> Any:
        collectives = make_collectives(CPU(), ranks)
        values = np.arange(4, dtype=np.float32)
        collectives.all_reduce_async([values])
        collectives.wait()
        collectives.all_gather(values, 0, 4)
        return collectives.rank, collectives.world, values.tolist()

    assert run_ranks(1, compute) == [(0, 1, [0, 1, 2, 3])]
