"""Batches made ready on another thread while the device works on the present one."""

import queue
import threading
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from cupygpt.data.rows import Position

READY_BATCHES = 2
POLL_S = 0.1
CLOSE_S = 5.0  # A read that hangs, on a network disk say, must not keep the program from ending.


class Positioned(Protocol):
    """A batch that knows the loader's position after it."""

    @property
    def position(self) -> Position:
        """Where the loader goes on."""


Item = TypeVar("Item", bound=Positioned)
Item_co = TypeVar("Item_co", bound=Positioned, covariant=True)


class BatchSource(Protocol[Item_co]):
    """What a `Prefetcher` reads from: a `TrainLoader`, or anything like it."""

    position: Position

    def next_batch(self) -> Item_co:
        """The next batch; moves `position` past it."""


class Prefetcher(Generic[Item]):
    """A loader that works ahead: a daemon thread keeps 2 batches ready.

    `next_batch()` gives the loader's batches in its order; an exception of the loader is raised at
    the batch where it belongs, and again by every later call. `position` is that after the last
    batch handed out, whatever the thread has read ahead. Leave the loader alone until `close()`,
    which stops the thread and may be called twice; use as a context manager does so too.
    """

    def __init__(self, loader: BatchSource[Item]) -> None:
        self.position: Position = loader.position
        self._loader = loader
        self._ready: queue.Queue[Item | Exception] = queue.Queue(READY_BATCHES)
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def next_batch(self) -> Item:
        """The next batch; waits for the thread if it is behind. Not after `close()`."""
        assert not self._stop.is_set(), "next_batch() after close()"
        item = self._failure or self._wait()
        if isinstance(item, Exception):
            self._failure = item
            raise item
        self.position = item.position
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

    def _wait(self) -> Item | Exception:
        # In short waits: on Windows Ctrl-C does not interrupt a wait without a limit.
        while True:
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:
                assert self._thread.is_alive() or not self._ready.empty(), "prefetch thread died"

    def _work(self) -> None:
        while not self._stop.is_set():
            item: Item | Exception
            try:
                item = self._loader.next_batch()
            except Exception as error:  # noqa: BLE001 (handed to the caller, which raises it)
                item = error
            self._hand_over(item)
            if isinstance(item, Exception):
                return

    def _hand_over(self, item: Item | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return
