"""How ops run on the CPU: is an array there, and work in blocks that fit the cache, on all cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from cupygpt.tensors import Array


def on_host(array: Array) -> bool:
    """True for plain NumPy arrays: they take the NumPy form of an op, all others its kernel."""
    return type(array) is np.ndarray


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_blocks(work: Callable[[int, int], None], total: int, block: int) -> None:
    """Call work(start, stop) for [0, total) cut into blocks, on a pool of threads.

    NumPy releases the GIL inside its loops, so the blocks run in parallel. Blocks must write to
    disjoint memory; then the result does not depend on their order.
    """
    starts = range(0, total, block)
    if len(starts) <= 1 or num_cores() == 1:
        for start in starts:
            work(start, min(start + block, total))
        return
    # list() waits for all of them and raises the first exception.
    list(_pool().map(lambda start: work(start, min(start + block, total)), starts))


@cache
def _pool() -> ThreadPoolExecutor:
    # Overflow to inf is meant (exp in GELU), and a NaN is reported once, by the run.
    return ThreadPoolExecutor(
        num_cores(), "cupygpt-op", initializer=lambda: np.seterr(all="ignore")
    )
