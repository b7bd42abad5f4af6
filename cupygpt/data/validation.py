"""The rows that validation reads: the same ones each time."""

from collections.abc import Iterator, Sequence

import numpy as np

from cupygpt.data.rows import Cut, Ids, check_row_fits, check_sizes, read_rows
from cupygpt.data.token_files import TokenShard
from cupygpt.errors import DataError

IGNORED_TARGET = -1
"""The target of a row that only fills a batch; the loss skips it."""


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
