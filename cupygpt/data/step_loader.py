"""The input of whole steps: batches packed into one array, prepared while the device works."""

import queue
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cupygpt.data.loader import Batch, BatchSource, Position

Packed = npt.NDArray[np.int32]
"""(3, A, B, T): tokens, targets and token order of A micro-batches."""

READY_ITEMS = 2
POLL_S = 0.1
CLOSE_S = 5.0
"""How long to wait for the thread at the end: a network disk that hangs must not stop the exit."""

Item = TypeVar("Item")


class StepLoader:
    """The batches of a loader, `accumulation` at a time: the input of one step each."""

    def __init__(self, loader: BatchSource[Batch], accumulation: int) -> None:
        self._loader, self._accumulation = loader, accumulation
        self.position: Position = loader.position

    def next_batch(self) -> Packed:
        """The packed input of the next step; moves `position` past it."""
        packed = pack([self._loader.next_batch() for _ in range(self._accumulation)])
        self.position = self._loader.position
        return packed


def pack(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> Packed:
    """Pack A micro-batches, (tokens, targets) pairs of (B, T) int32, into (3, A, B, T) int32.

    The third array of a micro-batch is its `token_order`, which encoder_backward needs.
    """
    B, T = batches[0][0].shape
    packed = np.empty((3, len(batches), B, T), np.int32)
    for i, (tokens, targets) in enumerate(batches):
        packed[0, i], packed[1, i] = tokens, targets
        packed[2, i] = token_order(tokens).reshape(B, T)
    return packed


def token_order(tokens: np.ndarray) -> npt.NDArray[np.int32]:
    """Positions (B * T,) int32 of the tokens, sorted by token id; equal ids keep their order."""
    # Ids fit in 16 bits, which NumPy sorts by radix, in about a tenth of the time.
    order = np.argsort(tokens.astype(np.uint16), axis=None, kind="stable")
    return order.astype(np.int32)


class Prefetcher(Generic[Item]):
    """A loader that works ahead: a daemon thread keeps 2 items ready.

    An item is a batch or, from a StepLoader, the input of a step.
    `next_batch()` gives the loader's items in order. An exception of the loader is raised by the
    call that would have returned that item, and again by every later call. `position` is the one
    after the last item that was given, however far the thread has read ahead. Do not use the loader
    itself until `close()`, which stops the thread and may be called twice. A `with` block closes it
    too.
    """

    def __init__(self, loader: BatchSource[Item]) -> None:
        self.position: Position = loader.position
        self._loader = loader
        self._ready: queue.Queue[tuple[Item, Position] | Exception] = queue.Queue(READY_ITEMS)
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def next_batch(self) -> Item:
        """The next item; waits for the thread if it is behind. Not after `close()`."""
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
