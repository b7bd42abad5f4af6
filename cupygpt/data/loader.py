"""How tokens become batches: shuffled epochs that can be resumed from two numbers.

Names: B rows per batch and rank, T tokens per row, V vocabulary size, S shards (token files). A row
is T + 1 consecutive tokens of one shard: T inputs, and the same tokens shifted by one as targets.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import TokenShard, id_error
from cupygpt.errors import DataError

Ids: TypeAlias = npt.NDArray[np.int32]
Counts: TypeAlias = npt.NDArray[np.int64]

IGNORED_TARGET = -1
"""The target of a row that only fills a batch; the loss skips it."""


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


Item_co = TypeVar("Item_co", covariant=True)


class BatchSource(Protocol[Item_co]):
    """What gives batches: a TrainLoader, a StepLoader, or a Prefetcher of one of them."""

    position: Position
    """Where the data continues after the last batch that was given; a checkpoint stores it."""

    def next_batch(self) -> Item_co:
        """The next batch; moves `position` past it."""


@dataclass(frozen=True)
class Cut:
    """How an epoch cuts the S shards into rows.

    `starts` (S,): the first token of each shard's first row; `rows_in_shard` (S,): how many rows
    each shard has.
    """

    starts: Counts
    rows_in_shard: Counts

    @property
    def num_rows(self) -> int:
        """The rows of all shards together."""
        return int(self.rows_in_shard.sum())


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
    last row, are left out of an epoch; another epoch's offset includes them. Memory: 4 bytes per
    row.

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
        self.shuffle = shuffle
        self.rank, self.num_ranks = rank, num_ranks
        self._lengths = np.array([shard.num_tokens for shard in shards], dtype=np.int64)
        self._cut_of = functools.lru_cache(maxsize=4)(self._cut_epoch)
        self._order_epoch = -1
        self._order: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self._check_rows_exist()
        self.position = self._checked(position)

    def rows_per_epoch(self, epoch: int) -> int:
        """The rows of all shards in `epoch`; epochs differ by up to one row per shard."""
        return self._cut_of(epoch).num_rows

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
        if self._order_epoch != position.epoch:
            random = self._random(position.epoch)
            random.random_sample()  # The first number is the offset; the order comes after it.
            self._order = np.arange(num_rows, dtype=np.uint32)
            random.shuffle(self._order)
            self._order_epoch = position.epoch
        return self._order[position.rows : stop].astype(np.int64)

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


class ValidationBatches:
    """The same consecutive rows each time: from each shard's beginning, shards in order.

    Iterating yields (inputs, targets, num_rows): inputs and targets (B, T) int32, of which the
    first num_rows rows are real; the rest only fill the batch. `len()` is the number of batches of
    this rank, equal on all ranks. One batch on each rank consumes B * num_ranks rows, as in
    training. The last batch may have too few rows: its num_rows may be below B, and 0 on later
    ranks. It is filled with copies of the data's very first row whose targets are all -1, which the
    loss ignores. So shapes never change, and a file of one row works with any B. The rows are read
    again by every iteration and never kept.

    `max_batches` counts batches of B rows on all ranks together; None means all rows. The ranks
    then see the rows that one rank would see alone, and batch i of a rank is batch
    i * num_ranks + rank of those. Raises DataError if no row fits, if `max_batches` is below 1 and,
    while iterating, if a token id is not below V.
    """

    def __init__(
        self,
        shards: Sequence[TokenShard],
        B: int,
        T: int,
        V: int,
        *,
        max_batches: int | None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        check_sizes(B, T, rank, num_ranks)
        if max_batches is not None and max_batches < 1:
            raise DataError(f"{max_batches} validation batches asked for; at least 1 is needed.")
        check_row_fits(shards, T)
        self.shards = list(shards)
        self.B, self.T, self.V = B, T, V
        self.rank, self.num_ranks = rank, num_ranks
        lengths = np.array([shard.num_tokens for shard in shards], dtype=np.int64)
        self._cut = Cut(np.zeros_like(lengths), (lengths - 1) // T)
        most = self._cut.num_rows if max_batches is None else max_batches * B
        self._num_rows = min(self._cut.num_rows, most)
        self._num_batches = -(-self._num_rows // (B * num_ranks))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[tuple[Ids, Ids, int]]:
        for i in range(self._num_batches):
            first = (i * self.num_ranks + self.rank) * self.B
            num_rows = min(max(self._num_rows - first, 0), self.B)
            indices = np.zeros(self.B, dtype=np.int64)
            indices[:num_rows] = np.arange(first, first + num_rows)
            rows = np.empty((self.B, self.T + 1), np.int32)
            read_rows(self.shards, self._cut, indices, self.V, rows)
            targets = rows[:, 1:].copy()
            targets[num_rows:] = IGNORED_TARGET
            yield rows[:, :-1].copy(), targets, num_rows


def read_rows(shards: Sequence[TokenShard], cut: Cut, indices: Counts, V: int, out: Ids) -> None:
    """Copy the rows `indices` (n,) of the cut to `out`; rows are numbered through all shards.

    Written: out (n, T + 1) int32. Raises DataError if a token id is not below V.
    """
    T = out.shape[1] - 1
    ends = np.cumsum(cut.rows_in_shard)
    owners = np.searchsorted(ends, indices, side="right")
    index_in_shard = indices - (ends[owners] - cut.rows_in_shard[owners])
    starts = cut.starts[owners] + index_in_shard * T
    for row, owner, start in zip(out, owners.tolist(), starts.tolist(), strict=True):
        row[:] = shards[owner].tokens[start : start + T + 1]
    if out.size and int(out.max()) >= V:
        i, t = (int(x) for x in np.argwhere(out >= V)[0])
        raise id_error(shards[int(owners[i])], int(starts[i]) + t, int(out[i, t]), V)


def check_row_fits(shards: Sequence[TokenShard], T: int) -> None:
    """Raise DataError unless at least one shard holds a row of T + 1 tokens."""
    longest = max((shard.num_tokens for shard in shards), default=0)
    if longest < T + 1:
        where = f"{shards[0].path}: " if len(shards) == 1 else f"{len(shards)} token files: "
        raise DataError(
            f"{where}the longest file has {longest:,} tokens, but one row takes {T + 1:,} "
            f"(T {T} + 1). Use -t {max(longest - 1, 1)} or less, or more text."
        )


def check_sizes(B: int, T: int, rank: int, num_ranks: int) -> None:
    """Raise DataError for an impossible batch size, row length or rank."""
    if B < 1 or T < 1 or not 0 <= rank < num_ranks:
        raise DataError(
            f"B {B}, T {T}, rank {rank} of {num_ranks}: B and T must be at least 1, "
            f"and the rank must be below the number of ranks."
        )
