"""Where the time of a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """What was done in a run, how often, and how many seconds it took; `began` is its start."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Something of this kind took so long."""
        self._seconds[kind] = self.total(kind) + seconds
        self._counts[kind] = self._counts.get(kind, 0) + 1

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Add the time of the block."""
        start = time.perf_counter()
        yield
        self.add(kind, time.perf_counter() - start)

    def total(self, kind: str) -> float:
        """Seconds of all of this kind."""
        return self._seconds.get(kind, 0.0)

    def mean(self, kind: str) -> float:
        """Seconds of one of this kind; 0 if there was none."""
        return self.total(kind) / self._counts[kind] if kind in self._counts else 0.0

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.perf_counter() - self._began
