"""Batches prepared on another thread while the device works on the present one."""

import queue
import threading
from types import TracebackType
from typing import Generic, TypeVar

from cupygpt.data.rows import BatchSource, Position

READY_BATCHES = 2
POLL_S = 0.1
CLOSE_S = 5.0
"""How long to wait for the thread at the end: a network disk that hangs must not stop the exit."""

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """A loader that works ahead: a daemon thread keeps 2 batches ready.

    `next_batch()` gives the loader's batches in order. An exception of the loader is raised at its
    batch, and again by every later call. `position` is the one after the last batch that was given,
    however far the thread has read ahead. Do not use the loader itself until `close()`, which stops
    the thread and may be called twice. A `with` block closes it too.
    """

    def __init__(self, loader: BatchSource[Item]) -> None:
        self.position: Position = loader.position
        self._loader = loader
        self._ready: queue.Queue[tuple[Item, Position] | Exception] = queue.Queue(READY_BATCHES)
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def next_batch(self) -> Item:
        """The next batch; waits for the thread if it is behind. Not after `close()`."""
        assert not self._stop.is_set(), "next_batch() after close()"
        ready = self._failure or self._wait()
        if isinstance(ready, Exception):
            self._failure = ready
            raise ready
        item, self.position = ready
        return item

    def close(self) -> None:
        """Stop the thread and drop what it has read ahead."""
        self._stop.set()
        self._thread.join(CLOSE_S)

    def __enter__(self) -> "Prefetcher[Item]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self) -> tuple[Item, Position] | Exception:
        # In short waits, because on Windows Ctrl-C does not interrupt a wait without a limit.
        while True:
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:
                assert self._thread.is_alive() or not self._ready.empty(), "prefetch thread died"

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._loader.next_batch()
            except Exception as error:  # noqa: BLE001 (next_batch raises it)
                self._hand_over(error)
                return
            self._hand_over((item, self._loader.position))

    def _hand_over(self, ready: tuple[Item, Position] | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(ready, timeout=POLL_S)
            except queue.Full:
                continue
            return
