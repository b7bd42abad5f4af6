"""Sums and gathers over the ranks, without a GPU; those of NCCL are in runs/test_multi_gpu.py."""

from typing import Any

import numpy as np
from support.rank_threads import run_ranks

from cupygpt.device.cpu import CPU
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


def test_one_rank_changes_nothing() -> None:
    def compute(ranks: Any) -> Any:
        collectives = make_collectives(CPU(), ranks)
        values = np.arange(4, dtype=np.float32)
        collectives.all_reduce_async([values])
        collectives.wait()
        collectives.all_gather(values, 0, 4)
        return collectives.rank, collectives.world, values.tolist()

    assert run_ranks(1, compute) == [(0, 1, [0, 1, 2, 3])]
