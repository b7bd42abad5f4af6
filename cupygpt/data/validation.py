"""The rows that a run validates on: the same ones each time, for any batch and number of ranks."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

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

IGNORED_TARGET = -1
"""The target of a row that only fills a batch; the loss skips it."""


class ValidationRows:
    """At most `count` rows of T + 1 tokens (None: all) of the shards, cut from their beginnings.

    With `evenly` they lie spread over all shards, else they are the first ones, as in llm.c. Raises
    DataError if no row fits, or if `count` is below 1.
    """

    def __init__(
        self, shards: Sequence[TokenShard], T: int, count: int | None, *, evenly: bool
    ) -> None:
        if count is not None and count < 1:
            raise DataError(f"{count} validation rows asked for; at least 1 is needed.")
        check_row_fits(shards, T)
        self.shards, self.T, self.evenly = list(shards), T, evenly
        lengths = np.array([shard.num_tokens for shard in shards], dtype=np.int64)
        self.cut = Cut(np.zeros_like(lengths), (lengths - 1) // T)
        there = self.cut.num_rows
        self.num_rows = there if count is None else min(there, count)
        self._among = there if evenly else self.num_rows

    def rows_at(self, start: int, stop: int) -> Counts:
        """Which rows of the cut stand at the places [start, stop), or up to the last place."""
        places = np.arange(start, min(stop, self.num_rows), dtype=np.int64)
        return places if self.num_rows == self._among else places * self._among // self.num_rows

    def share_of(self, most_tokens: int) -> "ValidationRows":
        """These rows, or of more than so many tokens an even share."""
        share = copy.copy(self)
        share.num_rows = min(self.num_rows, max(1, most_tokens // self.T))
        return share

    @property
    def num_tokens(self) -> int:
        """The targets of all rows."""
        return self.num_rows * self.T

    def as_dict(self) -> dict[str, Any]:
        """For the run's record: a resumed run validates on the same rows."""
        return {"rows": self.num_rows, "evenly": self.evenly}


class ValidationBatches:
    """One rank's batches of the rows, read again by every iteration and never kept.

    Iterating yields (inputs, targets, num_rows): inputs and targets (B, T) int32, of which the
    first num_rows rows are real; the rest only fill the batch. `len()` is the number of batches of
    this rank, equal on all ranks. The rows in their order are dealt out in batches of B: batch i of
    a rank is batch i * num_ranks + rank. The last batch may have too few rows: its num_rows may be
    below B, and 0 on later ranks. It is filled with copies of the first row of the data, whose
    targets are all -1, which the loss ignores. So shapes never change, and a file of one row works
    with any B. Raises DataError, while iterating, if a token id is not below V.
    """

    def __init__(
        self, rows: ValidationRows, B: int, V: int, *, rank: int = 0, num_ranks: int = 1
    ) -> None:
        check_sizes(B, rows.T, rank, num_ranks)
        self.rows, self.B, self.V = rows, B, V
        self.rank, self.num_ranks = rank, num_ranks
        self._num_batches = -(-rows.num_rows // (B * num_ranks))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[tuple[Ids, Ids, int]]:
        rows = self.rows
        for i in range(self._num_batches):
            first = (i * self.num_ranks + self.rank) * self.B
            own = rows.rows_at(first, first + self.B)
            indices = np.zeros(self.B, dtype=np.int64)
            indices[: len(own)] = own
            tokens = np.empty((self.B, rows.T + 1), np.int32)
            read_rows(rows.shards, rows.cut, indices, self.V, tokens)
            targets = tokens[:, 1:].copy()
            targets[len(own) :] = IGNORED_TARGET
            yield tokens[:, :-1].copy(), targets, len(own)
