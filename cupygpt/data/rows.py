"""Rows of token files: how an epoch cuts them, in which order it takes them, and how they are read.

A row is T + 1 consecutive tokens of one shard, which are T inputs, and the same tokens shifted by
one as targets. The rows of all shards are numbered through.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import TokenShard, id_error
from cupygpt.errors import DataError

Ids: TypeAlias = npt.NDArray[np.int32]
Counts: TypeAlias = npt.NDArray[np.int64]

MOST_LISTED_ROWS = 2**24
"""Up to so many rows their order is drawn once an epoch and kept, in 64 MiB at most; listing more
would take gigabytes and minutes. What lies above follows from a formula. This limit decides over
the order of a run, so it must not change."""

LISTED_ROW_BYTES = 4
ROUNDS = 8


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


def order_bytes(num_rows: int) -> int:
    """The memory that the order of an epoch of `num_rows` rows takes."""
    return LISTED_ROW_BYTES * num_rows if num_rows <= MOST_LISTED_ROWS else 0


def random_order(num_rows: int, random: np.random.RandomState) -> Callable[[int, int], Counts]:
    """A random order of the rows 0 to num_rows - 1.

    The function that is returned gives the rows at the places [start, stop) of the order. Up to
    MOST_LISTED_ROWS all rows are shuffled. For more, the row at each place is computed on its own.
    """
    if num_rows <= MOST_LISTED_ROWS:
        order = np.arange(num_rows, dtype=np.uint32)
        random.shuffle(order)
        return lambda start, stop: order[start:stop].astype(np.int64)
    keys = random.randint(0, 2**32, ROUNDS, dtype=np.uint32)
    return lambda start, stop: _scattered(np.arange(start, stop, dtype=np.int64), num_rows, keys)


def _scattered(places: Counts, n: int, keys: npt.NDArray[np.uint32]) -> Counts:
    """The row at each of `places`, for a random order of n rows that `keys` choose.

    A Feistel network on a grid of `height` times `width` fields, hardly more than n: each round
    shifts one coordinate by a hash of the other, which can be undone, so no two places share a
    field. The few that land on the fields from n on go through the network again until they land
    on a row, as in cycle-walking ciphers (Black and Rogaway, 2002).
    """
    height = math.isqrt(n - 1) + 1
    width = -(-n // height)
    rows = places.copy()
    outside = np.ones(len(rows), bool)
    while outside.any():
        y, x = np.divmod(rows[outside], width)
        for i, key in enumerate(keys):
            if i % 2 == 0:
                y = (y + _hash(x, key)) % height
            else:
                x = (x + _hash(y, key)) % width
        rows[outside] = y * width + x
        outside = rows >= n
    return rows


def _hash(values: Counts, key: np.uint32) -> npt.NDArray[np.uint32]:
    """32 mixed bits of each value below 2**32 (the finalizer of MurmurHash3)."""
    bits = values.astype(np.uint32) ^ key
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))
