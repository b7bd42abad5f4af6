"""Addition of a bias to every row, and its gradient."""

from cupygpt.kernels import Kernel, ceil_div, num_lanes, rows_launch
from cupygpt.ops.host import on_host
from cupygpt.tensors import Array

MAX_CHUNKS = 256
"""Chunks of rows whose sums fit the scratch of 256 OC elements."""
MIN_CHUNK_ROWS = 128
COLUMN_PACKS = 8
"""Packs of columns per block; PACKS in bias.cu."""
FINISH_COLUMNS = 32
THREADS = 256

_add = Kernel("bias.cu", "bias_add", "out:floatX* bias:floatX* N:i32 OC:i32")
_backward_partials = Kernel(
    "bias.cu",
    "bias_backward_partials",
    "partials:f32* dout:floatX* N:i32 OC:i32 chunk_rows:i32",
)
_backward_finish = Kernel(
    "bias.cu", "bias_backward_finish", "dbias:f32* partials:f32* num_chunks:i32 OC:i32"
)


def bias_add(out: Array, bias: Array) -> None:
    """out[..., :] += bias.

    Updated in place: out (..., OC) floatX. Read: bias (OC,).
    """
    if on_host(out):
        out += bias
        return
    OC = int(bias.size)
    N = int(out.size) // OC
    _add(out, bias, N, OC, **rows_launch(N, OC // num_lanes(out)))


def bias_backward(dbias: Array, dout: Array, partials: Array) -> None:
    """dbias += sum of the rows of dout, in a fixed order.

    Accumulated: dbias (OC,) float32. Read: dout (..., OC). Scratch: partials, flat float32, at
    least 256 OC elements. After llm.c matmul.cuh, matmul_backward_bias.
    """
    OC = int(dbias.size)
    if on_host(dbias):
        dbias += dout.reshape(-1, OC).sum(axis=0)
        return
    N = int(dout.size) // OC
    chunk_rows = max(MIN_CHUNK_ROWS, ceil_div(N, MAX_CHUNKS))
    num_chunks = ceil_div(N, chunk_rows)
    columns = COLUMN_PACKS * num_lanes(dout)
    _backward_partials(
        partials, dout, N, OC, chunk_rows,
        grid=(ceil_div(OC, columns), num_chunks), block=THREADS,
    )  # fmt: skip
    _backward_finish(
        dbias, partials, num_chunks, OC,
        grid=ceil_div(OC, FINISH_COLUMNS), block=THREADS, like=dout,
    )  # fmt: skip
