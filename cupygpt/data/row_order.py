"""In which order an epoch takes its rows: at random, each row once, the same for the same seed.

A new run uses COMPUTED: the row at a place is computed from the number of the place, so that an
epoch of any size costs no memory and no time before its first batch. Runs that were begun by
earlier versions go on with LISTED.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import Counts

COMPUTED = "computed"
LISTED = "listed"
ROW_ORDERS = (COMPUTED, LISTED)

MOST_LISTED_ROWS = 2**24
"""LISTED shuffles a list of up to so many rows once an epoch, and computes the order of more. This
limit decides over the order of a run, so it must not change."""

LISTED_ROW_BYTES = 4

ROUNDS = 12
"""Of the network that computes an order; with 8 some orders of 5 to 7 rows came too often."""
ROUNDS_BEYOND_THE_LIST = 8
"""Of LISTED above MOST_LISTED_ROWS."""

ROWS_AHEAD = 4096
"""So many rows are computed at once: a few take nearly as long as these."""


class RowOrder(Protocol):
    """The rows at the places [start, stop) of an order."""

    def __call__(self, start: int, stop: int) -> Counts:
        """(stop - start,) numbers of rows."""


def row_order(kind: str, num_rows: int, random: np.random.RandomState) -> RowOrder:
    """A random order of the rows 0 to num_rows - 1; `kind` is one of ROW_ORDERS."""
    assert kind in ROW_ORDERS, kind
    if kind == LISTED and num_rows <= MOST_LISTED_ROWS:
        order = np.arange(num_rows, dtype=np.uint32)
        random.shuffle(order)
        return lambda start, stop: order[start:stop].astype(np.int64)
    rounds = ROUNDS if kind == COMPUTED else ROUNDS_BEYOND_THE_LIST
    keys = random.randint(0, 2**32, rounds, dtype=np.uint32)
    return _Ahead(lambda places: computed_rows(places, num_rows, keys), num_rows)


def order_bytes(kind: str, num_rows: int) -> int:
    """The memory that the order of an epoch of `num_rows` rows takes."""
    is_listed = kind == LISTED and num_rows <= MOST_LISTED_ROWS
    return LISTED_ROW_BYTES * num_rows if is_listed else 0


class _Ahead:
    """An order that is asked for batch after batch, and computed in larger blocks."""

    def __init__(self, rows_at: Callable[[Counts], Counts], num_rows: int) -> None:
        self._rows_at, self._num_rows = rows_at, num_rows
        self._first, self._rows = 0, np.empty(0, np.int64)

    def __call__(self, start: int, stop: int) -> Counts:
        if not self._first <= start <= stop <= self._first + len(self._rows):
            end = min(max(stop, start + ROWS_AHEAD), self._num_rows)
            self._first, self._rows = start, self._rows_at(np.arange(start, end, dtype=np.int64))
        return self._rows[start - self._first : stop - self._first]


def computed_rows(places: Counts, n: int, keys: npt.NDArray[np.uint32]) -> Counts:
    """The row at each of `places`, for a random order of n rows that `keys` choose.

    A Feistel network on a grid of `height` times `width` fields, hardly more than n. Each round
    shifts one coordinate by a hash of the other, which can be undone, so no two places share a
    field. The few that land on the fields from n on go through the network again until they land
    on a row, as in cycle-walking ciphers (Black and Rogaway, 2002): a permutation of the fields
    leads back to its start, so each of them arrives, and no two at the same row.
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
