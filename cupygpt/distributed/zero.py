"""ZeRO-1 (Rajbhandari et al. 2019, arXiv:1910.02054): who keeps which part of the optimizer's state.

The flat vector of all parameters is cut into as many runs as there are ranks, equal and aligned;
the last one may be shorter. Moments and master weights of a run exist on its rank alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 8
"""Elements: what one 128-bit access moves of bfloat16, so that kernels work on a part as on all."""


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of the flat parameters."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def part_size(num_parameters: int, shards: int) -> int:
    """Elements of every part but the last."""
    return -(-num_parameters // (shards * ALIGNMENT)) * ALIGNMENT if shards > 1 else num_parameters


def part_of(num_parameters: int, shards: int, rank: int) -> Part:
    """The part that `rank` keeps; empty where a tiny model gives out before the ranks do."""
    size = part_size(num_parameters, shards)
    return Part(min(rank * size, num_parameters), min((rank + 1) * size, num_parameters))


def cut_segments(
    segments: Sequence[tuple[int, int, bool]], part: Part
) -> list[tuple[int, int, bool]]:
    """The (start, stop, decay) runs inside `part`, counted from its start."""
    inside = [
        (max(start, part.start) - part.start, min(stop, part.stop) - part.start, decay)
        for start, stop, decay in segments
    ]
    return [(start, stop, decay) for start, stop, decay in inside if start < stop]
