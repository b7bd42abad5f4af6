"""What the ranks do with arrays: sum gradients, and hand out updated parameters.

Both implementations fix the order in which numbers are added, so that all ranks hold the same
bits and a run repeats.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from cupygpt.arrays import Array


class Collectives(Protocol):
    """Sums and exchanges over all ranks; every rank must make the same calls in the same order.

    Nothing waits for the device, so that the calls can be captured into a graph.
    """

    rank: int
    world: int

    def all_reduce_async(self, arrays: Sequence[Array]) -> None:
        """Replace contiguous arrays by their sums over the ranks.

        Starts when the work queued so far is done, and runs beside what is queued next, which must
        not touch the arrays before `wait`.
        """

    def wait(self) -> None:
        """What is queued from here on finds all sums done."""

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """Fill `whole` from the ranks' parts: mine is whole[start:stop], world equal parts."""


def make_collectives(device: Any, ranks: Any) -> Collectives | None:
    """NCCL between GPUs, sockets between CPU processes (for tests), None for a single rank."""
    if ranks.world == 1:
        return None
    if device.is_gpu:
        from cupygpt.distributed.nccl import NcclCollectives

        return NcclCollectives(device, ranks)
    from cupygpt.distributed.sockets import SocketCollectivesForTests

    return SocketCollectivesForTests(ranks)
