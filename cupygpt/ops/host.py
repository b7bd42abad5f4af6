"""How ops run on the CPU: is an array there, and work in blocks that fit the cache, on all cores."""

from collections.abc import Callable
from functools import partial

import numpy as np

from cupygpt.ops.workers import idle_cores, run_together
from cupygpt.tensors import Array


def on_host(array: Array) -> bool:
    """True for plain NumPy arrays: they take the NumPy form of an op, all others its kernel."""
    return type(array) is np.ndarray


def for_blocks(work: Callable[[int, int], None], total: int, block: int) -> None:
    """Call work(start, stop) for [0, total) cut into blocks, on all idle cores.

    Each core takes one run of consecutive blocks, this thread the first: threads that trade single
    blocks spend their time waking each other. Blocks must write to disjoint memory; then the
    result does not depend on their order.
    """
    num_blocks = -(-total // block)
    num_runs = max(1, min(idle_cores(), num_blocks))

    def run(number: int) -> None:
        for i in range(number * num_blocks // num_runs, (number + 1) * num_blocks // num_runs):
            work(i * block, min((i + 1) * block, total))

    run_together([partial(run, number) for number in range(num_runs)])


def share(total: int, least: int) -> int:
    """Block size that gives every idle core one block, but none smaller than `least`."""
    return max(1, least, -(-total // idle_cores()))
