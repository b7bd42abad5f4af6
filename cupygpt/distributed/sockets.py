"""Sums over sockets, to test several ranks without a GPU: simple, and therefore slow."""

from collections.abc import Iterator, Sequence

import numpy as np

from cupygpt.arrays import Array
from cupygpt.distributed.messages import Closed, MessageSocket
from cupygpt.distributed.ranks import ManyRanks


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
        total = np.concatenate([array.reshape(-1) for array in arrays])
        if self.rank:
            total = self._ask_rank0(total, total)
        else:
            for values in self._receive_from_others(total):
                total += values
            self._send_to_others(total)
        start = 0
        for array in arrays:
            array.reshape(-1)[...] = total[start : start + array.size]
            start += array.size

    def wait(self) -> None:
        """Nothing is pending."""

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """Fill `whole` with the elements of all ranks; see Collectives."""
        own = whole[start:stop]
        assert own.size * self.world == whole.size, (own.size, self.world, whole.size)
        if self.rank:
            whole[...] = self._ask_rank0(own, whole)
            return
        for rank, values in enumerate(self._receive_from_others(own), start=1):
            whole[rank * own.size : (rank + 1) * own.size] = values
        self._send_to_others(whole)

    def _ask_rank0(self, own: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Send `own` to rank 0; its answer has the shape and dtype of `like`."""
        with self._ranks.connection_errors():
            self._ranks.rank0.send_bytes(own.tobytes())
            return _receive(self._ranks.rank0, like)

    def _receive_from_others(self, like: np.ndarray) -> Iterator[np.ndarray]:
        """One after the other, so that rank 0 does not hold the arrays of all ranks at a time."""
        for other in self._ranks.others.values():
            with self._ranks.connection_errors():
                values = _receive(other, like)
            yield values

    def _send_to_others(self, array: np.ndarray) -> None:
        with self._ranks.connection_errors():
            for other in self._ranks.others.values():
                other.send_bytes(array.tobytes())


def _receive(connection: MessageSocket, like: np.ndarray) -> np.ndarray:
    """An array with the shape and dtype of `like`. Raises Closed if it has another size."""
    received = connection.receive_bytes(max_bytes=like.nbytes)
    if len(received) != like.nbytes:
        raise Closed("the other side sent an array of another size")
    return np.frombuffer(received, like.dtype).reshape(like.shape)
