"""Sums over sockets, for tests of the rank logic where there is no GPU. Slow on purpose: simple."""

from collections.abc import Sequence

import numpy as np

from cupygpt.arrays import Array
from cupygpt.distributed.ranks import ManyRanks


class SocketCollectivesForTests:
    """Every array goes to rank 0, which adds in the order of the ranks, and back.

    For tests only: the time grows with the number of ranks, and nothing runs beside anything.
    """

    def __init__(self, ranks: ManyRanks) -> None:
        self.rank, self.world = ranks.rank, ranks.world
        self._ranks = ranks

    def all_reduce_async(self, arrays: Sequence[Array]) -> None:
        """Sums in place, done when the call returns."""
        assert all(array.flags.c_contiguous for array in arrays)
        together = np.concatenate([array.reshape(-1) for array in arrays])
        if self.rank:
            together = self._ask_first(together, together)
        else:
            for part in self._receive_all(together):
                together += part
            self._send_all(together)
        start = 0
        for array in arrays:
            array.reshape(-1)[...] = together[start : start + array.size]
            start += array.size

    def wait(self) -> None:
        """Nothing is under way."""

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """Fill `whole` with the parts of all ranks."""
        mine = whole[start:stop]
        assert mine.size * self.world == whole.size, (mine.size, self.world, whole.size)
        if self.rank:
            whole[...] = self._ask_first(mine, whole)
            return
        for rank, part in enumerate(self._receive_all(mine), start=1):
            whole[rank * mine.size : (rank + 1) * mine.size] = part
        self._send_all(whole)

    def _ask_first(self, mine: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        with self._ranks.connection_errors():
            self._ranks.first.send_bytes(mine.tobytes())
            answer = self._ranks.first.receive_bytes()
        return np.frombuffer(answer, wanted.dtype).reshape(wanted.shape)

    def _receive_all(self, like: np.ndarray) -> list[np.ndarray]:
        with self._ranks.connection_errors():
            received = [wire.receive_bytes() for wire in self._ranks.others.values()]
        return [np.frombuffer(part, like.dtype).reshape(like.shape) for part in received]

    def _send_all(self, array: np.ndarray) -> None:
        with self._ranks.connection_errors():
            for wire in self._ranks.others.values():
                wire.send_bytes(array.tobytes())
