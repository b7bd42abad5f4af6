"""ZeRO-1 (arXiv:1910.02054): each rank keeps a share of the optimizer's state.

The flat vector of all parameters is divided into one zero shard per rank. All zero shards have
`shard_size` elements until the parameters run out: the last ones may be shorter, or empty. The
moments and master weights of a zero shard exist on its rank only. Parameters and gradients stay
whole on every rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 8
"""Elements of a bfloat16 pack: every zero shard starts on a pack, as kernels need it."""


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
    """Elements of a zero shard; where the parameters run out, there are fewer."""
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
    """The parts of `segments` that lie inside a zero shard.

    A segment is (start, stop, whether weight decay applies). Those returned count their elements
    from the start of the zero shard.
    """
    pieces = [
        (max(start, shard.start) - shard.start, min(stop, shard.stop) - shard.start, decay)
        for start, stop, decay in segments
    ]
    return [(start, stop, decay) for start, stop, decay in pieces if start < stop]
