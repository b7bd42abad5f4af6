"""How ops run on the CPU: is an array there, and work in blocks that fit the cache, on all cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import numpy as np

from cupygpt.tensors import Array


def on_host(array: Array) -> bool:
    """True for plain NumPy arrays: they take the NumPy form of an op, all others its kernel."""
    return type(array) is np.ndarray


@cache
def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_blocks(work: Callable[[int, int], None], total: int, block: int) -> None:
    """Call work(start, stop) for [0, total) cut into blocks, on all cores.

    NumPy releases the GIL inside its loops. Each core takes one run of consecutive blocks, this
    thread the first: threads that trade single blocks spend their time waking each other. Blocks
    must write to disjoint memory; then the result does not depend on their order.
    """
    num_blocks = -(-total // block)
    num_runs = min(num_cores(), num_blocks)
    if num_runs <= 1:
        for start in range(0, total, block):
            work(start, min(start + block, total))
        return

    def run(number: int) -> None:
        for i in range(number * num_blocks // num_runs, (number + 1) * num_blocks // num_runs):
            work(i * block, min((i + 1) * block, total))

    others = [_pool().submit(run, number) for number in range(1, num_runs)]
    try:
        run(0)
    finally:
        wait(others)
    for other in others:
        other.result()


def share(total: int, least: int) -> int:
    """Block size that gives every core one block, but none smaller than `least`."""
    return max(1, least, -(-total // num_cores()))


@cache
def _pool() -> ThreadPoolExecutor:
    # Overflow to inf is meant (exp in GELU), and a NaN is reported once, by the run.
    return ThreadPoolExecutor(
        num_cores(), "cupygpt-op", initializer=lambda: np.seterr(all="ignore")
    )
