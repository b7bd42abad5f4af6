"""About how long a launch takes on a GPU, and what limits it.

    time = LAUNCH + (DRAM^p + L2^p + L1^p + arithmetic^p + waiting^p)^(1/p),  p = OVERLAP

Each term is the time that one part of the GPU would need alone. They overlap, but not wholly. The
three constants were fitted to 104 launches on an H100, with clocks of 1.94 to 1.98 GHz and cold
caches: all estimates lie between 0.72 and 1.45 times the measured times, two thirds within 10 %.
Expect a factor of 1.5 on an H100, and 2 on other GPUs, where nothing was measured.

Not modelled: what L1 and L2 keep over time, spilled registers, the issue of instructions, sectors
that are written in part, products by wgmma.
"""

from dataclasses import dataclass

from cupygpt.emulator.counted import SECTOR_BYTES, UNDER_WAY, Counts
from cupygpt.kernels.launch import WARP
from cupygpt.performance.gpus import GPU
from cupygpt.performance.unrolling import loads_under_way

LAUNCH_US = 2.5
ROUND_US = 0.42
"""How long a warp waits for global memory: a round of `Counts.rounds`."""
OVERLAP = 1.5

L2_KEEPS = 0.4
"""The share of L2 that still holds what was written when the launch ends, so DRAM saw nothing."""
L2_BYTES_PER_CYCLE = 64
"""Of each multiprocessor."""
SPECIAL_PER_CYCLE = 16
"""exp, log and the like of each multiprocessor."""
RESERVED_SHARED_BYTES = 1024
"""That each block takes beside its own shared memory."""


@dataclass(frozen=True)
class Work:
    """What a launch asks of a GPU, as far as the model knows it."""

    blocks: int
    threads: int
    """Of a block."""
    shared_bytes: int
    """Of a block."""
    least_bytes: int
    """Different sectors that are read and that are written."""
    written_bytes: int
    l2_sectors: int
    """Read, each once for each block; and written, for each request."""
    l1_cycles: int
    """Lines of global memory, turns of shared memory, shuffles."""
    flop_slots: int
    special_slots: int
    tensor_flop: int
    rounds: int

    @classmethod
    def of(cls, counts: Counts, under_way: int) -> "Work":
        """The work of a launch in which `under_way` loads of a place are under way at once."""
        everything, stores = counts.total("global"), counts.total("global", "write", "atomic")
        written = counts.written_sectors * SECTOR_BYTES
        return cls(
            blocks=counts.blocks,
            threads=counts.threads,
            shared_bytes=counts.shared_bytes,
            least_bytes=counts.read_sectors * SECTOR_BYTES + written,
            written_bytes=written,
            l2_sectors=counts.fetched_sectors + stores.sectors,
            l1_cycles=everything.cache_lines
            + counts.total("shared").joined_turns
            + counts.shuffles,
            flop_slots=counts.flop_slots,
            special_slots=counts.special_slots,
            tensor_flop=counts.tensor_flop,
            rounds=counts.rounds[under_way],
        )


@dataclass(frozen=True)
class Estimate:
    """The time of a launch on one GPU, in microseconds."""

    gpu: GPU
    microseconds: float
    terms: dict[str, float]
    """What each part of the GPU would need alone, the longest first."""
    bytes_alone: float
    """If nothing but the least that it must move took time."""
    held_threads: float
    """The share of the threads that the GPU can hold which the launch keeps there at once."""

    @property
    def limit(self) -> str:
        """What the launch mostly waits for."""
        name, longest = next(iter(self.terms.items()))
        return name if longest else "the launch itself"


def estimate(counts: Counts, gpu: GPU, under_way: int | None = None) -> Estimate:
    """The estimate for a launch.

    `under_way` is the number of loads of one place that nvcc keeps under way at once, one of
    UNDER_WAY; None reads it from the source (unrolling.py).
    """
    if under_way is None:
        under_way = loads_under_way(counts)
    if under_way not in UNDER_WAY:
        raise ValueError(f"{under_way} loads under way: it must be one of {UNDER_WAY}")
    return estimate_of(Work.of(counts, under_way), gpu)


def estimate_of(work: Work, gpu: GPU) -> Estimate:
    """The time model."""
    used = min(work.blocks, gpu.multiprocessors)
    cycles = gpu.clock_ghz * 1e3 * used  # per microsecond, of all multiprocessors that work
    share = used / gpu.multiprocessors
    stays = min(work.written_bytes, L2_KEEPS * gpu.l2_mb * 1e6)
    dram = (work.least_bytes - stays) / (gpu.dram_gb_s * 1e3)
    resident = blocks_at_once(work, gpu)
    waves = max(1.0, work.blocks / (gpu.multiprocessors * resident))
    terms = {
        "DRAM": dram,
        "L2": work.l2_sectors * SECTOR_BYTES / (L2_BYTES_PER_CYCLE * cycles),
        "L1 and shared memory": work.l1_cycles / cycles,
        "arithmetic": work.flop_slots / (gpu.fp32_tflops * 1e6 * share)
        + work.special_slots / (SPECIAL_PER_CYCLE * cycles)
        + work.tensor_flop / (gpu.tensor_tflops * 1e6 * share),
        "waiting": waves * work.rounds * ROUND_US,
    }
    together = sum(term**OVERLAP for term in terms.values()) ** (1 / OVERLAP)
    held = min(work.blocks, resident * gpu.multiprocessors) * work.threads
    return Estimate(
        gpu=gpu,
        microseconds=LAUNCH_US + together,
        terms=dict(sorted(terms.items(), key=lambda term: -term[1])),
        bytes_alone=LAUNCH_US + dram,
        held_threads=held / (gpu.threads * gpu.multiprocessors),
    )


def blocks_at_once(work: Work, gpu: GPU, registers: int = 0) -> int:
    """How many blocks a multiprocessor holds, by threads, shared memory and registers; at least 1.

    `registers` are those of a thread; 0 leaves them out, as the time model does.
    """
    limits = [gpu.blocks, gpu.threads // work.threads]
    if work.shared_bytes:
        limits.append((gpu.shared_kib << 10) // (work.shared_bytes + RESERVED_SHARED_BYTES))
    if registers:
        warps = -(-work.threads // WARP)
        of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        limits.append(gpu.registers // (of_warp * warps))
    return max(1, min(limits))


REGISTER_UNIT = 256
"""Registers are given to a warp in units of this many."""
