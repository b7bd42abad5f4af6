"""Rows: how token shards are cut into them, and how they are read.

Names: B rows per batch and rank, T tokens per row, V vocabulary size, S shards. A row is T + 1
consecutive tokens of one shard: T inputs and the same shifted by one as targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import TokenShard, id_error
from cupygpt.errors import DataError

Ids: TypeAlias = npt.NDArray[np.int32]
Counts: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: rows consumed by all ranks together in this epoch."""

    epoch: int
    rows: int


START = Position(epoch=0, rows=0)


@dataclass(frozen=True)
class Batch:
    """One batch of one rank, and the position after it, which a checkpoint stores."""

    inputs: Ids
    """(B, T) int32."""
    targets: Ids
    """(B, T) int32, targets[b, t] follows inputs[b, t]."""
    position: Position


@dataclass(frozen=True)
class Cut:
    """How an epoch cuts the shards into rows: starts (tokens) and rows of each shard, both (S,)."""

    starts: Counts
    rows: Counts

    @property
    def num_rows(self) -> int:
        """Rows of all shards together."""
        return int(self.rows.sum())


def read_rows(shards: Sequence[TokenShard], cut: Cut, indices: Counts, V: int, out: Ids) -> None:
    """Copy rows number `indices` (n,) of `cut`, counted through all shards, to `out`.

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
    """Raise DataError for a batch, row or rank that cannot be."""
    if B < 1 or T < 1 or not 0 <= rank < num_ranks:
        raise DataError(
            f"B {B}, T {T}, rank {rank} of {num_ranks}: B and T must be at least 1, "
            f"and a rank lies in [0, ranks)."
        )
