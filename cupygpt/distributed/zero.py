"""ZeRO-1 (arXiv:1910.02054): each rank keeps a share of the optimizer's state.

The flat vector of all parameters is divided into one zero shard per rank. The shards are equal and
aligned; the last one may be shorter. The moments and master weights of a shard exist on its rank
only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 8
"""Elements in one 128-bit access of bfloat16: a kernel needs no special case for a zero shard."""


@dataclass(frozen=True)
class ZeroShard:
    """Elements [start, stop) of the flat parameters."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def shard_size(num_parameters: int, num_shards: int) -> int:
    """Elements of every zero shard except the last one, which may have fewer."""
    if num_shards == 1:
        return num_parameters
    return -(-num_parameters // (num_shards * ALIGNMENT)) * ALIGNMENT


def shard_of(num_parameters: int, num_shards: int, rank: int) -> ZeroShard:
    """The zero shard of `rank`; it is empty if a tiny model has too few elements for all ranks."""
    size = shard_size(num_parameters, num_shards)
    return ZeroShard(min(rank * size, num_parameters), min((rank + 1) * size, num_parameters))


def segments_of_shard(
    segments: Sequence[tuple[int, int, bool]], shard: ZeroShard
) -> list[tuple[int, int, bool]]:
    """The pieces of (start, stop, decay) segments inside `shard`, counted from its start."""
    pieces = [
        (max(start, shard.start) - shard.start, min(stop, shard.stop) - shard.start, decay)
        for start, stop, decay in segments
    ]
    return [(start, stop, decay) for start, stop, decay in pieces if start < stop]
