"""From token files to the input of a step: shuffled epochs that can be resumed from two numbers.

TrainLoader gives the batches, StepLoader packs those of one step, and Prefetcher does both on a
thread while the device works. Names: B rows per batch and rank, T tokens per row, V vocabulary
size, S shards (token files).
"""

import functools
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cupygpt.data.row_order import COMPUTED, RowOrder, row_order
from cupygpt.data.token_files import (
    Counts,
    Cut,
    Ids,
    TokenShard,
    check_row_fits,
    check_sizes,
    read_rows,
)
from cupygpt.errors import DataError

Packed: TypeAlias = npt.NDArray[np.int32]
"""(3, A, B, T): tokens, targets and token order of A micro-batches."""

READY_ITEMS = 2
POLL_S = 0.1
CLOSE_S = 5.0
"""How long to wait for the thread at the end: a network disk that hangs must not stop the exit."""

MOST_COUNTED_EPOCHS = 1000
"""Beyond, `rows_before` takes all epochs as equal: to count each one would take seconds."""


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: the epoch, and the number of its rows already used.

    `rows` counts the rows of all ranks together.
    """

    epoch: int
    rows: int


START = Position(epoch=0, rows=0)


class Batch(NamedTuple):
    """One batch of one rank: two views (B, T) int32 of the same rows.

    `targets[b, t]` is the token that follows `inputs[b, t]`.
    """

    inputs: Ids
    targets: Ids


Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class BatchSource(Protocol[Item_co]):
    """What gives batches: a TrainLoader, a StepLoader, or a Prefetcher of one of them."""

    position: Position
    """Where the data continues after the last batch that was given; a checkpoint stores it."""

    def next_batch(self) -> Item_co:
        """The next batch; moves `position` past it."""


class TrainLoader:
    """Batches without end, over epochs that each visit every row once.

    With `shuffle`, epoch e has its own offset in [0, T), from which all shards are cut into rows,
    and takes the rows of all shards in a random order. For the same shards and T, offset and order
    depend only on (seed, e). One batch on each rank consumes the next B * num_ranks rows of this
    order; rank r gets rows [r * B, (r + 1) * B) of them. A batch that reaches the end of an epoch
    continues with the next epoch. The whole state is therefore a `Position`: a run can be resumed
    from it with another B or number of ranks, and still sees each remaining row once. A shard of at
    least T + 1 tokens gives at least one row: if it is too short for the offset, it is cut from
    `offset % (num_tokens - T)`. Up to T - 1 tokens before the offset, and up to T - 1 after the
    last row, are left out of an epoch; another epoch's offset includes them. `order` is one of
    ROW_ORDERS: COMPUTED, or LISTED for a run that an earlier version has begun.

    Without `shuffle` the batches are those of llm.c's unshuffled loader (llmc/dataloader.h). Each
    shard of n tokens, in order, gives floor((n - 1) / (num_ranks * B * T)) batches of consecutive
    rows from its beginning; the rest of the shard is dropped. Then it all repeats. With another B
    on resume the dropped tokens differ, and so may the rows around them.

    Raises DataError if no row fits, if a shard is too short for one unshuffled batch, if
    `position` lies beyond the epoch, or, from `next_batch`, if a token id is not below V.
    """

    def __init__(
        self,
        shards: Sequence[TokenShard],
        B: int,
        T: int,
        V: int,
        *,
        seed: int,
        shuffle: bool = True,
        order: str = COMPUTED,
        rank: int = 0,
        num_ranks: int = 1,
        position: Position = START,
    ) -> None:
        check_sizes(B, T, rank, num_ranks)
        if not 0 <= seed < 2**64:
            raise DataError(f"the seed is {seed}; it must be at least 0 and below 2**64.")
        self.shards = list(shards)
        self.B, self.T, self.V = B, T, V
        self.seed = seed
        self.shuffle, self.order = shuffle, order
        self.rank, self.num_ranks = rank, num_ranks
        self._lengths = np.array([shard.num_tokens for shard in shards], dtype=np.int64)
        self._cut_of = functools.lru_cache(maxsize=4)(self._cut_epoch)
        self._order_epoch = -1
        self._rows_of_epoch: RowOrder | None = None
        self._check_rows_exist()
        self.position = self._checked(position)

    def rows_per_epoch(self, epoch: int) -> int:
        """The rows of all shards in `epoch`; epochs differ by up to one row per shard."""
        return self._cut_of(epoch).num_rows

    def rows_before(self, position: Position) -> int:
        """The rows that a run at `position` has used since its beginning."""
        counted = min(position.epoch, MOST_COUNTED_EPOCHS)
        rows = sum(self.rows_per_epoch(epoch) for epoch in range(counted))
        return rows + (position.epoch - counted) * self.rows_per_epoch(0) + position.rows

    def next_batch(self) -> Batch:
        """The next batch of this rank; moves `position` on by B * num_ranks rows."""
        before = self.rank * self.B
        after = (self.num_ranks - 1 - self.rank) * self.B
        start = self._advance(self.position, before)
        rows = np.empty((self.B, self.T + 1), np.int32)
        end = self._read(start, rows)
        self.position = self._advance(end, after)
        return Batch(rows[:, :-1], rows[:, 1:])

    def _read(self, position: Position, out: Ids) -> Position:
        """Fill `out` (n, T + 1) with the rows after `position`; returns the position after them."""
        filled = 0
        while filled < len(out):
            cut = self._cut_of(position.epoch)
            count = min(len(out) - filled, cut.num_rows - position.rows)
            indices = self._row_indices(position, count, cut.num_rows)
            read_rows(self.shards, cut, indices, self.V, out[filled : filled + count])
            filled += count
            position = self._advance(position, count)
        return position

    def _advance(self, position: Position, rows: int) -> Position:
        """The position `rows` later, in a later epoch if this one ends before."""
        epoch, reached = position.epoch, position.rows + rows
        while reached >= (num_rows := self.rows_per_epoch(epoch)):
            epoch, reached = epoch + 1, reached - num_rows
        return Position(epoch, reached)

    def _cut_epoch(self, epoch: int) -> Cut:
        if not self.shuffle:
            rows_per_step = self.num_ranks * self.B
            steps = (self._lengths - 1) // (rows_per_step * self.T)
            return Cut(np.zeros_like(steps), steps * rows_per_step)
        offset = int(self._random(epoch).random_sample() * self.T)
        room = np.maximum(self._lengths - self.T, 1)  # Starts that leave space for one row.
        starts = np.where(offset < room, offset, offset % room)
        return Cut(starts, np.maximum(self._lengths - 1 - starts, 0) // self.T)

    def _row_indices(self, position: Position, count: int, num_rows: int) -> Counts:
        stop = position.rows + count
        if not self.shuffle:
            return np.arange(position.rows, stop, dtype=np.int64)
        if self._rows_of_epoch is None or self._order_epoch != position.epoch:
            random = self._random(position.epoch)
            random.random_sample()  # The first number is the offset; the order comes after it.
            self._rows_of_epoch = None  # frees the memory of the epoch before
            self._rows_of_epoch = row_order(self.order, num_rows, random)
            self._order_epoch = position.epoch
        return self._rows_of_epoch(position.rows, stop)

    def _random(self, epoch: int) -> np.random.RandomState:
        # NumPy promises that RandomState never changes its numbers (NEP 19), but not Generator. A
        # run that is resumed with another NumPy must see the same order.
        words = [self.seed & 0xFFFFFFFF, self.seed >> 32, epoch]
        return np.random.RandomState(words)

    def _check_rows_exist(self) -> None:
        if not len(self.shards):
            raise DataError("no token files were given. Name them with -i.")
        if self.shuffle:
            check_row_fits(self.shards, self.T)
            return
        needed = self.num_ranks * self.B * self.T + 1
        for shard in self.shards:
            if shard.num_tokens < needed:
                raise DataError(
                    f"{shard.path}: {shard.num_tokens:,} tokens, but one unshuffled batch takes "
                    f"{needed:,} (ranks {self.num_ranks} x B {self.B} x T {self.T} + 1). Use a "
                    f"smaller -b or -t, drop this file, or shuffle (no --no-shuffle)."
                )

    def _checked(self, position: Position) -> Position:
        if position.epoch < 0 or position.rows < 0:
            raise DataError(f"a position in the data cannot be negative: {position}.")
        num_rows = self.rows_per_epoch(position.epoch)
        if position.rows < num_rows:
            return position
        if position.rows > num_rows and self.shuffle:
            raise DataError(
                f"the run stands at row {position.rows:,} of epoch {position.epoch}, but with "
                f"these files and T {self.T} that epoch has {num_rows:,} rows. Resume with the "
                f"data and sequence length (-t) it was started with."
            )
        return Position(position.epoch + 1, 0)


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
    # NumPy sorts numbers of 16 bits by radix, in about a tenth of the time: first by the lower half
    # of the ids, then by the upper half, where an id has one.
    ids = tokens.ravel()
    order = np.argsort(ids.astype(np.uint16), kind="stable")
    upper = (ids >> 16).astype(np.uint16)
    if upper.any():
        order = order[np.argsort(upper[order], kind="stable")]
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
