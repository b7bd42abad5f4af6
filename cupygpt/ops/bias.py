"""The gradient of a bias, the sum of the rows of a matrix; the matmul itself adds the bias."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.batch_split import accumulate
from cupygpt.device.cpu_threads import for_blocks, on_host, share
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import WARP, Defines, Launch, ceil_div, pack_size

MAX_CHUNKS = 256
"""Chunks of rows whose sums fit the scratch of 256 OC elements."""
SUM_BLOCKS = 1056
"""Blocks that share a matrix: several for each multiprocessor of the largest GPUs."""
SUM_THREADS = 256
"""Most threads of such a block."""
SUM_PACKS = 32
"""Most packs of columns of such a block: with 32, a warp reads 512 bytes of one row."""
ROWS_IN_FLIGHT = 4
"""Rows of which a thread starts the loads before it uses the first."""
SUM_DEFINES = {"SUM_THREADS": SUM_THREADS, "ROWS_IN_FLIGHT": ROWS_IN_FLIGHT}
"""For every launch of a .cu file with a kernel built on sum_chunk (lib/chunk_sums.cuh)."""
LEAST_SHARE = 1 << 17
"""Elements per CPU thread, at least: to sum fewer takes less time than waking the thread."""

_backward_partials = Kernel(
    "bias.cu",
    "bias_backward_partials",
    "partials:f32* dout:floatX* N:i32 OC:i32 chunk_rows:i32",
)
_backward_finish = Kernel(
    "bias.cu", "bias_backward_finish", "dbias:f32* partials:f32* num_chunks:i32 OC:i32"
)


def bias_backward(dbias: Array, dout: Array, partials: Array) -> None:
    """dbias += sum of the rows of dout, in a fixed order.

    Accumulated: dbias (OC,) float32. Read: dout (..., OC). Scratch: partials, flat float32, at
    least 256 OC elements. After llm.c matmul.cuh, matmul_backward_bias.
    """
    OC = int(dbias.size)
    if on_host(dbias):
        _numpy_backward(dbias, dout.reshape(-1, OC))
        return
    sums = RowSums(dout, OC)
    _backward_partials(partials, dout, sums.N, OC, sums.chunk_rows, launch=sums.launch)
    sums.add_to(dbias, partials, like=dout)


class RowSums:
    """How the blocks of a kernel built on sum_chunk (lib/chunk_sums.cuh) share a matrix (N, OC).

    The kernel runs with `launch` and leaves `num_chunks` rows of sums in the scratch of 256 OC
    elements; then `add_to` adds these rows to the result.
    """

    def __init__(self, matrix: Array, OC: int) -> None:
        self.N = int(matrix.size) // OC
        per_pack = pack_size(matrix)
        packs = OC // per_pack
        x = min(packs, SUM_PACKS)
        column_groups = ceil_div(packs, x)
        y = max(1, SUM_THREADS // x)
        chunks = min(
            MAX_CHUNKS,
            max(1, SUM_BLOCKS // column_groups),
            ceil_div(self.N, y * ROWS_IN_FLIGHT),
        )
        self.chunk_rows = ceil_div(self.N, chunks)
        self.num_chunks = ceil_div(self.N, self.chunk_rows)
        self.launch = Launch(
            (column_groups, self.num_chunks),
            (x, y),
            shared_bytes=4 * per_pack * x * y,
            defines=SUM_DEFINES,
        )

    def add_to(self, dbias: Array, partials: Array, *, like: Array) -> None:
        """dbias += the sum of the rows of sums."""
        add_column_sums(dbias, partials, self.num_chunks, like=like)


def add_column_sums(total: Array, sums: Array, num_rows: int, *, like: Array) -> None:
    """total += the sum of the rows of `sums` (num_rows, OC) float32, in a fixed order.

    Not for the CPU. Accumulated: total (OC,) float32. `like` is any floatX array of the run.
    """
    OC = int(total.size)
    launch = column_sums_launch(OC, defines=SUM_DEFINES)
    _backward_finish(total, sums, num_rows, OC, launch=launch, like=like)


def column_sums_launch(columns: int, num_matrices: int = 1, *, defines: Defines) -> Launch:
    """The launch of a kernel built on add_column_sums (lib/column_sums.cuh).

    Block (x, y) has 32 columns of matrix y, and 32 warps.
    """
    return Launch((ceil_div(columns, WARP), num_matrices), WARP * WARP, defines=defines)


def _numpy_backward(dbias: np.ndarray, dout: np.ndarray) -> None:
    def columns(start: int, stop: int) -> None:
        accumulate((dbias[start:stop], np.add.reduce(dout[:, start:stop], axis=0)))

    for_blocks(columns, len(dbias), share(len(dbias), LEAST_SHARE // len(dout)))
