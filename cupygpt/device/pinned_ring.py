"""A ring of page-locked memory that host data passes through on its way to the GPU."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

ALIGNMENT_BYTES = 256


class Event(Protocol):
    """A point on a stream of work, as CuPy's events are."""

    def synchronize(self) -> None:
        """Wait until the work before it is done."""


class PinnedRing:
    """Hands out regions of one buffer in turn; a region is reused when its copy has been done.

    `record` marks the current end of the stream that copies from the regions.
    """

    def __init__(self, buffer: np.ndarray, record: Callable[[], Event]) -> None:
        self._buffer, self._record = buffer, record
        self._busy: deque[tuple[int, int, Event]] = deque()
        self._next = 0

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[np.ndarray]:
        """Region of `num_bytes` to fill, and to copy from before the block ends.

        Waits while earlier copies still read from it. At most the size of the ring.
        """
        assert 0 < num_bytes <= self._buffer.size, num_bytes
        if self._next + num_bytes > self._buffer.size:
            self._next = 0
        start, stop = self._next, self._next + num_bytes
        # Regions are busy in the order in which they were taken: the oldest lie ahead.
        while self._busy and any(start < b and a < stop for a, b, _ in self._busy):
            self._busy.popleft()[2].synchronize()
        yield self._buffer[start:stop]
        self._busy.append((start, stop, self._record()))
        self._next = -(-stop // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
