"""What a launch asked of the memory of a GPU, by line of the source and in total.

`EmulatedKernel.count` and `counting` (emulate.py) make a `Counts`. The rules are those of an H100;
README.md says what was compared with one, and what is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cupygpt.emulator.places import Place
from cupygpt.kernels.launch import WARP

SECTOR_BYTES = 32
"""What global memory moves at least."""

UNDER_WAY = (1, 2, 4, 8, 16)
"""Loads of one place that may be under way at once: the keys of `Counts.rounds`."""

KINDS = ("read", "write", "atomic", "async copy")
SPACES = ("", "global", "shared")
_TENSOR_FLOP = {"mma_m16n8k16_bf16": 4096, "mma_m16n8k8_tf32": 2048}
"""Of one warp's operation."""


@dataclass(frozen=True)
class AccessCounts:
    """One access in the code; sums over all warps of the launch."""

    place: Place | None
    """The line of the kernel's own file; None if it is not known."""
    space: str
    """global or shared."""
    kind: str
    """One of KINDS. An async copy (cp.async) is one request of each space."""
    array: str
    """The kernel's parameter, or the shared array."""
    bytes: int
    """Of one lane's access."""
    requests: int
    """Accesses of warps: what the lanes of a warp ask for at once."""
    lanes: int
    """Lanes that took part, over all requests."""
    sectors: int
    """Global: different sectors of 32 bytes, over all requests."""
    cache_lines: int
    """Global: different lines of 128 bytes, each of which takes a cycle of the L1 cache."""
    turns: int
    """Shared: cycles, more than `parts` where lanes meet in a bank."""
    parts: int
    """Shared: the turns without bank conflicts."""
    joined_requests: int
    """Shared: requests if neighbouring words are read at once, as nvcc does where it can."""
    joined_turns: int
    """Shared: the turns of these."""
    stride: int | None
    """Bytes from each lane to the next; None if they differ or only one lane takes part."""

    @property
    def asked_bytes(self) -> int:
        """What the lanes asked for."""
        return self.lanes * self.bytes

    @property
    def moved_bytes(self) -> int:
        """Global: what was moved for it."""
        return self.sectors * SECTOR_BYTES

    @property
    def per_request(self) -> float:
        """Sectors (global) or turns (shared) of a request."""
        return (self.sectors if self.space == "global" else self.turns) / self.requests

    @property
    def at_best(self) -> float:
        """What `per_request` would be without waste: neighbouring lanes side by side.

        Lanes that share what they read may need less; then it is what they need.
        """
        if self.space == "shared":
            return self.parts / self.requests
        side_by_side = max(1.0, self.asked_bytes / self.requests / SECTOR_BYTES)
        return min(side_by_side, self.per_request)


@dataclass(frozen=True)
class MeetingCounts:
    """A barrier, a shuffle or another operation of a whole warp."""

    place: Place | None
    operation: str
    """__syncthreads, __shfl_xor_sync, mma_m16n8k16_bf16, ..."""
    count: int
    """Once for each block (barriers), else once for each warp."""


@dataclass(frozen=True)
class ArithmeticCounts:
    """The arithmetic of one line."""

    place: Place | None
    flop: int
    """float operations of all lanes; a fused multiply-add counts two."""
    flop_slots: int
    """The same if all lanes of a warp were busy whenever one was."""
    special: int
    """exp, log, tanh and the like, of all lanes."""
    special_slots: int


@dataclass(frozen=True)
class Totals:
    """Sums over the accesses of one kind to one space."""

    requests: int
    lanes: int
    asked_bytes: int
    sectors: int
    cache_lines: int
    turns: int
    parts: int
    joined_requests: int
    joined_turns: int

    @property
    def busy_lanes(self) -> float:
        """The share of the lanes that took part."""
        return self.lanes / (WARP * self.requests) if self.requests else 1.0


@dataclass(frozen=True)
class Counts:
    """What one launch asked for."""

    kernel: str
    source: Path
    options: tuple[str, ...]
    """That the file was compiled with, as for NVRTC."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    """Shared memory of a block: the arrays that the kernel used, and the dynamic memory."""
    warps: int
    accesses: tuple[AccessCounts, ...]
    meetings: tuple[MeetingCounts, ...]
    arithmetic: tuple[ArithmeticCounts, ...]
    read_sectors: int
    """Different sectors that the launch reads: the least that it must fetch from DRAM."""
    written_sectors: int
    fetched_sectors: int
    """Different sectors that are read, for each block: what L2 must deliver if L1 keeps all."""
    rounds: dict[int, int]
    """How often a warp waits for global memory, by the loads of a place that are under way at once
    (UNDER_WAY); of the warp that waits most. A round ends at a store, a shuffle or a barrier."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    def total(self, space: str, *kinds: str) -> Totals:
        """The sums over the accesses of these kinds (all if none is given) to one space."""
        chosen = [a for a in self.accesses if a.space == space and (not kinds or a.kind in kinds)]
        names = Totals.__dataclass_fields__
        return Totals(**{name: sum(getattr(a, name) for a in chosen) for name in names})

    def operations(self, *beginnings: str) -> int:
        """How often operations ran whose names begin so."""
        return sum(m.count for m in self.meetings if m.operation.startswith(beginnings))

    @property
    def barriers(self) -> int:
        """__syncthreads, once for each block."""
        return self.operations("__syncthreads")

    @property
    def shuffles(self) -> int:
        """Shuffles, once for each warp."""
        return self.operations("__shfl")

    @property
    def flop(self) -> int:
        """float operations of all lanes."""
        return sum(a.flop for a in self.arithmetic)

    @property
    def flop_slots(self) -> int:
        """float operations if all lanes of a warp were busy whenever one was."""
        return sum(a.flop_slots for a in self.arithmetic)

    @property
    def special_slots(self) -> int:
        """exp and the like, counted as flop_slots."""
        return sum(a.special_slots for a in self.arithmetic)

    @property
    def tensor_flop(self) -> int:
        """float operations of the tensor cores by mma. Those of wgmma are not known."""
        return sum(m.count * _TENSOR_FLOP.get(m.operation, 0) for m in self.meetings)
