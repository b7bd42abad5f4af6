"""What the ranks do with arrays: sum gradients, and exchange updated parameters.

Every implementation adds in a fixed order, so that all ranks hold the same bits, and a repeated run
gives them again. The order of sockets.py is that of the ranks. NCCL's follows from the sizes of the
arrays, from the way the GPUs are connected, and from NCCL's version and settings.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from cupygpt.arrays import Array
from cupygpt.distributed.sockets import SocketCollectivesForTests


class Collectives(Protocol):
    """Sums and exchanges over all ranks; every rank must make the same calls in the same order.

    No call waits for the device, so that the calls can be captured into a graph.
    """

    rank: int
    world: int

    def all_reduce_async(self, arrays: Sequence[Array]) -> None:
        """Replace each contiguous float32 array by its sum over the ranks.

        The sum starts after the work that is queued so far, and runs in parallel with the work
        that is queued later. Until `wait`, that work must not touch the arrays.
        """

    def wait(self) -> None:
        """Work that is queued from here on starts after all sums. The host does not wait."""

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """Fill the 1-D array `whole` with the elements of all ranks, in the order of the ranks.

        Read: `whole[start:stop]`, the elements of this rank, equally many on each rank. Written:
        the rest of `whole`, before any work that is queued from here on. Any dtype.
        """


class OneRankCollectives:
    """A single rank has nothing to sum or to exchange: every call does nothing."""

    rank, world = 0, 1

    def all_reduce_async(self, arrays: Sequence[Array]) -> None:
        """The sum over one rank is the array itself."""

    def wait(self) -> None:
        """Nothing is pending."""

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """`whole` is complete already."""


ONE_RANK_COLLECTIVES = OneRankCollectives()


def make_collectives(device: Any, ranks: Any) -> Collectives:
    """NCCL between GPUs, sockets between CPU processes (for tests), nothing for a single rank."""
    if ranks.world == 1:
        return ONE_RANK_COLLECTIVES
    if device.is_gpu:
        from cupygpt.distributed.nccl import NcclCollectives

        return NcclCollectives(device, ranks)
    return SocketCollectivesForTests(ranks)
