"""Rows: how token files are cut into them, how they are read, and what a batch of them is.

Names: B rows per batch and rank, T tokens per row, V vocabulary size, S shards (token files). A row
is T + 1 consecutive tokens of one shard: T inputs, and the same tokens shifted by one as targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import TokenShard, id_error
from cupygpt.errors import DataError

Ids: TypeAlias = npt.NDArray[np.int32]
Counts: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: the epoch, and how many of its rows all ranks have used."""

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
    """How an epoch cuts the S shards into rows: first token and number of rows of each, (S,)."""

    starts: Counts
    rows: Counts

    @property
    def num_rows(self) -> int:
        """The rows of all shards together."""
        return int(self.rows.sum())


def read_rows(shards: Sequence[TokenShard], cut: Cut, indices: Counts, V: int, out: Ids) -> None:
    """Copy the rows `indices` (n,) of the cut to `out`; rows are numbered through all shards.

    Written: out (n, T + 1) int32. Raises DataError if a token id is not below V.
    """
    T = out.shape[1] - 1
    ends = np.cumsum(cut.rows)
    owners = np.searchsorted(ends, indices, side="right")
    starts = cut.starts[owners] + (indices - ends[owners] + cut.rows[owners]) * T
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
