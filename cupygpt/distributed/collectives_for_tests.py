"""Sums over sockets, for tests of the rank logic where there is no GPU. Slow on purpose: simple."""

from collections.abc import Sequence

import numpy as np

from cupygpt.distributed.ranks import ManyRanks
from cupygpt.distributed.wire import Closed
from cupygpt.errors import RunError
from cupygpt.tensors import Array


class SocketCollectivesForTests:
    """Every array goes to rank 0, which adds in the order of the ranks, and back. For tests only:
    the time grows with the number of ranks, and nothing runs beside anything."""

    def __init__(self, ranks: ManyRanks) -> None:
        self.rank, self.world = ranks.rank, ranks.world
        self._ranks = ranks

    def sum_beside(self, arrays: Sequence[Array]) -> None:
        """Sums in place, done when the call returns."""
        for array in arrays:
            assert array.flags.c_contiguous
            if self.rank:
                array[...] = self._ask_first(array)
                continue
            parts = self._receive_all(array)
            for part in parts:
                array += part
            self._send_all(array)

    def join(self) -> None:
        """Nothing is under way."""

    def gather(self, whole: Array, start: int, stop: int) -> None:
        """Fill `whole` with the parts of all ranks."""
        mine = whole[start:stop]
        assert mine.size * self.world == whole.size, (mine.size, self.world, whole.size)
        if self.rank:
            whole[...] = self._ask_first(mine, whole)
            return
        for rank, part in enumerate(self._receive_all(mine), start=1):
            whole[rank * mine.size : (rank + 1) * mine.size] = part
        self._send_all(whole)

    def _ask_first(self, mine: np.ndarray, wanted: np.ndarray | None = None) -> np.ndarray:
        wanted = mine if wanted is None else wanted
        try:
            self._ranks.first.send_bytes(mine.tobytes())
            answer = self._ranks.first.receive_bytes()
        except Closed as error:
            raise RunError(f"the connection to rank 0 broke ({error}).") from error
        return np.frombuffer(answer, wanted.dtype).reshape(wanted.shape)

    def _receive_all(self, like: np.ndarray) -> list[np.ndarray]:
        try:
            received = [wire.receive_bytes() for wire in self._ranks.others.values()]
        except Closed as error:
            raise RunError(f"the connection to another rank broke ({error}).") from error
        return [np.frombuffer(part, like.dtype).reshape(like.shape) for part in received]

    def _send_all(self, array: np.ndarray) -> None:
        for wire in self._ranks.others.values():
            wire.send_bytes(array.tobytes())
