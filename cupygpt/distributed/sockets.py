"""Sums over sockets, to test several ranks without a GPU: simple, and therefore slow.

Arrays travel in pieces, so that an exchange takes a few MiB that the memory plan need not count.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cupygpt.arrays import Array
from cupygpt.distributed.messages import Closed, MessageSocket
from cupygpt.distributed.ranks import ManyRanks

PIECE = 1 << 18
"""Elements that are sent at a time."""


class SocketCollectivesForTests:
    """Every rank sends its arrays to rank 0, which adds them in rank order and sends back the sums.

    For tests only: the time grows with the number of ranks, and no sum overlaps with other work.
    """

    def __init__(self, ranks: ManyRanks) -> None:
        self.rank, self.world = ranks.rank, ranks.world
        self._ranks = ranks

    def all_reduce_async(self, arrays: Sequence[Array]) -> None:
        """Sum in place; the sums are complete when the call returns."""
        assert all(array.flags.c_contiguous for array in arrays)
        for parts in _pieces(arrays):
            total = np.concatenate(parts)
            with self._ranks.connection_errors():
                self._sum(total)
            start = 0
            for part in parts:
                part[...] = total[start : start + part.size]
                start += part.size

    def wait(self) -> None:
        """Nothing is pending."""

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """Fill `whole` with the elements of all ranks; see Collectives."""
        own = whole[start:stop]
        assert own.size * self.world == whole.size, (own.size, self.world, whole.size)
        with self._ranks.connection_errors():
            if self.rank:
                _send(self._ranks.rank0, own)
                _receive(self._ranks.rank0, whole)
                return
            for rank, other in self._ranks.others.items():
                _receive(other, whole[rank * own.size : (rank + 1) * own.size])
            for other in self._ranks.others.values():
                _send(other, whole)

    def _sum(self, total: np.ndarray) -> None:
        """Replace this rank's addend by the sum over all ranks."""
        if self.rank:
            _send(self._ranks.rank0, total)
            _receive(self._ranks.rank0, total)
            return
        addend = np.empty_like(total)
        for other in self._ranks.others.values():
            _receive(other, addend)
            total += addend
        for other in self._ranks.others.values():
            _send(other, total)


def _pieces(arrays: Sequence[Array]) -> Iterator[list[np.ndarray]]:
    """The arrays one after the other as flat views, cut into pieces of PIECE elements."""
    piece: list[np.ndarray] = []
    room = PIECE
    for array in arrays:
        flat = array.reshape(-1)
        while flat.size:
            piece.append(flat[:room])
            flat, room = flat[room:], room - piece[-1].size
            if room == 0:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece


def _send(connection: MessageSocket, array: np.ndarray) -> None:
    """Send a flat array, piece by piece."""
    for (part,) in _pieces([array]):
        connection.send_bytes(part.data.cast("B"))


def _receive(connection: MessageSocket, array: np.ndarray) -> None:
    """Fill a flat array with what the other side sends. Raises Closed if that has another size."""
    for (part,) in _pieces([array]):
        received = connection.receive_bytes(max_bytes=part.nbytes)
        if len(received) != part.nbytes:
            raise Closed("the other side sent an array of another size")
        part[...] = np.frombuffer(received, part.dtype)
