"""A batch in parts, one for each core: long stretches of ops in which no thread waits for another.

Each op over a part of the batch runs on one thread. What all parts add to, the gradients of the
parameters, they add to in the order of the parts, so that every run on as many cores gives the
same bits.
"""

import threading
from collections.abc import Sequence
from functools import partial
from queue import SimpleQueue

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import Job, num_cores, on_host, run_together

ADDED, ENDED = "added", "ended"

_here = threading.local()
"""`turns` on a thread that runs a part: (news from the part before, news for the part after)."""


class PartEndedError(RuntimeError):
    """A part waited for a sum that the part before it never made."""


def num_parts(array: Array) -> int:
    """Parts into which a batch (B, ...) like `array` is cut: only the CPU takes several."""
    return min(num_cores(), len(array)) if on_host(array) else 1


def run_parts(parts: Sequence[Job]) -> None:
    """Run jobs that make the same calls of `accumulate`, at once; return when all have ended."""
    if len(parts) == 1:
        parts[0]()
        return
    news: list[SimpleQueue[str]] = [SimpleQueue() for _ in parts[1:]]

    def run(number: int) -> None:
        before = news[number - 1] if number > 0 else None
        after = news[number] if number < len(news) else None
        _here.turns = before, after
        try:
            parts[number]()
        finally:
            _here.turns = None
            if after is not None:
                after.put(ENDED)

    run_together([partial(run, number) for number in range(len(parts))])


def accumulate(*sums: tuple[np.ndarray, np.ndarray]) -> None:
    """target += addend for each (target, addend); a part does so after the part before it.

    A part therefore trails the one before: after its first turn it seldom has to wait.
    """
    before, after = getattr(_here, "turns", None) or (None, None)
    if before is not None and before.get() == ENDED:
        raise PartEndedError("the part before ended without this sum")
    for target, addend in sums:
        target += addend
    if after is not None:
        after.put(ADDED)
