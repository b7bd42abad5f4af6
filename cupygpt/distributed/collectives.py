"""What the ranks do with arrays: sum gradients, and exchange updated parameters.

Every implementation adds in a fixed order, so that all ranks hold the same bits and a run repeats.
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
        """Replace each contiguous array by its sum over the ranks.

        The sum starts after the work that is queued so far, and runs in parallel with the work
        that is queued later. Until `wait`, that work must not touch the arrays.
        """

    def wait(self) -> None:
        """All sums are complete before any work that is queued from here on."""

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """Fill `whole` with the elements of all ranks, an equal number from each.

        `whole[start:stop]` holds those of this rank, in the order of the ranks.
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
