"""How a kernel is launched, and what launch code asks of an array and of the GPU that holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cupygpt.arrays import Array
from cupygpt.errors import KernelError

Defines = Mapping[str, int]
"""Integer constants for the compiler, by name: -DNAME=VALUE."""

WARP = 32
"""Threads of a warp, on every GPU; also in cuda/lib/packs.cuh."""

WARPGROUP, WARPGROUP_ROWS = 128, 64
"""Threads of a warpgroup, and rows of its products on Hopper; also in cuda/lib/wgmma_tiles.cuh."""

PACK_BYTES = 16
"""Size of a pack, the 128-bit access of cuda/lib/packs.cuh."""

DEFAULT_SHARED_BYTES = 48 << 10
"""Shared memory, static and dynamic together, that a block gets without asking for more."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched, and the constants to compile it with.

    Each kernel has one function that computes them, in the file of its op. A .cu file gets these
    numbers as -D constants and from blockDim, and holds no second copy.
    """

    grid: int | tuple[int, ...]
    """Number of blocks, in up to three dimensions; if it is 0, nothing is launched."""
    block: int | tuple[int, ...]
    """Threads of a block, in up to three dimensions."""
    shared_bytes: int = 0
    """Dynamic shared memory of a block."""
    defines: Defines = field(default_factory=dict)


PACK_THREADS = 256
"""Threads of a block in `launch_per_pack`."""


def launch_per_pack(packs: int, defines: Defines | None = None) -> Launch:
    """The launch of a kernel with one thread per pack."""
    return Launch(ceil_div(packs, PACK_THREADS), PACK_THREADS, defines=defines or {})


def ceil_div(numerator: int, denominator: int) -> int:
    """numerator / denominator, rounded up."""
    return -(-numerator // denominator)


def pack_size(array: Array) -> int:
    """Elements of a pack: 4 of float32, 8 of bfloat16."""
    return PACK_BYTES // int(array.itemsize)


def num_packs(array: Array) -> int:
    """Number of packs in an array.

    Raises KernelError if the size is not a multiple of a pack. GPTConfig accepts only multiples of
    8 channels, so the arrays of a model always have whole packs.
    """
    size, elements = int(array.size), pack_size(array)
    if size % elements:
        raise KernelError(f"an array of {size} elements: kernels need a multiple of {elements}.")
    return size // elements


@dataclass(frozen=True)
class Multiprocessors:
    """The multiprocessors of a GPU."""

    count: int
    shared_bytes: int
    """Shared memory of each."""
    shared_bytes_of_block: int
    """The most shared memory that one block may use."""


EMULATED = Multiprocessors(2, 100 << 10, 99 << 10)
"""What `multiprocessors` returns for arrays that lie on no GPU. The numbers are small, so that
small tests also meet several blocks per multiprocessor."""

_known_multiprocessors: dict[int, Multiprocessors] = {}


def multiprocessors(array: Array) -> Multiprocessors:
    """The multiprocessors of the GPU that holds an array."""
    device = getattr(array, "device", None)
    index = getattr(device, "id", None)
    if device is None or index is None:
        return EMULATED
    if index not in _known_multiprocessors:
        attributes = device.attributes
        _known_multiprocessors[index] = Multiprocessors(
            attributes["MultiProcessorCount"],
            attributes["MaxSharedMemoryPerMultiprocessor"],
            attributes["MaxSharedMemoryPerBlockOptin"],
        )
    return _known_multiprocessors[index]


def is_hopper(array: Array) -> bool:
    """Whether the array's GPU has wgmma (Hopper's matrix instructions): compute capability 9.0."""
    return getattr(getattr(array, "device", None), "compute_capability", "") == "90"
