"""How a kernel is launched, and what launch code asks of arrays and of their GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from cupygpt.arrays import Array
from cupygpt.errors import KernelError

Defines = Mapping[str, int]
"""Integer constants for the compiler: -DNAME=VALUE."""

PACK_BYTES = 16
"""Size of the 128-bit accesses in cuda/lib/packs.cuh."""

WARP = 32
"""Threads of a warp, on every GPU; also in cuda/lib/packs.cuh."""

ROW_THREADS = 256
"""Most threads of a block that `rows_launch` chooses."""


@dataclass(frozen=True)
class Launch:
    """Grid and block, dynamic shared memory of a block, and the constants a kernel is compiled with.

    Each op has one function that computes it: the only place where these numbers stand. The .cu
    file gets them as -D constants and from blockDim, and holds no second copy.
    """

    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    shared_bytes: int = 0
    defines: Defines = field(default_factory=dict)


def ceil_div(numerator: int, denominator: int) -> int:
    """numerator / denominator, rounded up."""
    return -(-numerator // denominator)


def pack_size(array: Array) -> int:
    """Elements that one 128-bit access moves: 4 of float32, 8 of bfloat16."""
    return PACK_BYTES // int(array.itemsize)


@dataclass(frozen=True)
class Multiprocessors:
    """Those of a GPU: how many, and the shared memory that the blocks of one have together."""

    count: int
    shared_bytes: int
    shared_bytes_of_block: int


EMULATED = Multiprocessors(2, 100 << 10, 99 << 10)
"""What `multiprocessors` reports where there is no GPU: few blocks, each with several rounds."""


def multiprocessors(array: Array) -> Multiprocessors:
    """Those of the GPU that an array lies on."""
    index = getattr(getattr(array, "device", None), "id", None)
    return EMULATED if index is None else _multiprocessors_of_gpu(index)


@cache
def _multiprocessors_of_gpu(index: int) -> Multiprocessors:
    import cupy

    attributes = cupy.cuda.Device(index).attributes
    return Multiprocessors(
        attributes["MultiProcessorCount"],
        attributes["MaxSharedMemoryPerMultiprocessor"],
        attributes["MaxSharedMemoryPerBlockOptin"],
    )


def num_packs(array: Array) -> int:
    """How many 128-bit accesses cover an array.

    Raises KernelError if its size is not a whole number of them; with the multiples of 8 channels
    that GPTConfig demands, it always is.
    """
    size, lanes = int(array.size), pack_size(array)
    if size % lanes:
        raise KernelError(f"an array of {size} elements: kernels need a multiple of {lanes}.")
    return size // lanes


def is_hopper(array: Array) -> bool:
    """Whether the array's device has wgmma: compute capability 9.0, no other."""
    return getattr(getattr(array, "device", None), "compute_capability", "") == "90"


def rows_launch(num_rows: int, packs_per_row: int) -> Launch:
    """The launch of a kernel whose threads (x, y) take pack x, x + blockDim.x, … of row y."""
    rounds = ceil_div(packs_per_row, ROW_THREADS)
    x = ceil_div(packs_per_row, rounds)
    y = max(1, ROW_THREADS // x)
    return Launch(ceil_div(num_rows, y), (x, y))
