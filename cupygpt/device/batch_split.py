"""A batch cut into slices, one for each core: long stretches of ops without waiting.

Each op on a slice of the batch runs on one thread. What all slices add to, the gradients of the
parameters, they add to in the order of the slices, so that every run on the
same number of cores gives the same bits:

    slice 0   op op [add 1]  op op [add 2]  op op ...
    slice 1   op op   wait   [add 1]  op op [add 2]  op op ...
"""

import threading
from collections.abc import Sequence
from functools import partial
from queue import SimpleQueue

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import Job, num_cores, on_host, run_together

ADDED, ENDED = "added", "ended"

_turns = threading.local()
"""`queues` on a thread that runs a slice: (queue from the slice before, queue to the next one)."""


class SliceEndedError(RuntimeError):
    """A slice waited for a sum that the slice before it never made."""


def num_slices(array: Array) -> int:
    """Slices into which a batch (B, ...) like `array` is cut: only the CPU takes several."""
    return min(num_cores(), len(array)) if on_host(array) else 1


def run_slices(slices: Sequence[Job]) -> None:
    """Run the jobs in parallel, and return when all have ended.

    All must call `accumulate` equally often, in the same order: it depends on the model alone.
    """
    if len(slices) == 1:
        slices[0]()
        return
    queues: list[SimpleQueue[str]] = [SimpleQueue() for _ in slices[1:]]

    def run(index: int) -> None:
        before = queues[index - 1] if index > 0 else None
        after = queues[index] if index < len(queues) else None
        _turns.queues = before, after
        try:
            slices[index]()
        finally:
            _turns.queues = None
            if after is not None:
                after.put(ENDED)

    run_together([partial(run, index) for index in range(len(slices))])


def accumulate(*sums: tuple[np.ndarray, np.ndarray]) -> None:
    """target += addend for each (target, addend), after the slice before has done the same.

    A slice therefore trails the one before it: after its first turn it seldom has to wait.
    """
    before, after = getattr(_turns, "queues", None) or (None, None)
    if before is not None and before.get() == ENDED:
        raise SliceEndedError("the slice before ended without this sum")
    for target, addend in sums:
        target += addend
    if after is not None:
        after.put(ADDED)
