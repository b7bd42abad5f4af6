"""LayerNorm over the last axis, alone and fused with the residual addition before it."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.batch_split import accumulate
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import (
    PACK_BYTES,
    WARP,
    Launch,
    Multiprocessors,
    ceil_div,
    multiprocessors,
    pack_size,
)
from cupygpt.ops.bias import bias_backward, column_sums_launch

EPSILON = 1e-5
"""Added to the variance of a row, as in GPT-2."""

BLOCK_ELEMENTS = 1 << 16
"""Elements that a CPU thread handles at once. Larger blocks mean fewer calls of NumPy; with this
size a few float32 temporaries (256 KB each) still stay in the second-level cache."""

SINGLE_WARP_PACKS = 8
"""Forward: up to this many packs per thread, one warp has a row alone."""
LONG_ROW_PACKS = 4
"""Forward: packs per thread of rows that need more than one warp."""
MAX_WARPS_PER_ROW = 32
BLOCK_WARPS = 2
"""Forward: warps of a block if each has its own row. Small blocks make room for the next ones as
soon as they are done."""

BACKWARD_THREADS = 768
"""Backward: threads on a multiprocessor, mostly of one block. Its 65536 registers are enough for 80
each."""
MAX_BACKWARD_THREADS = 896
"""Backward: up to this many threads (72 registers each) where 768 is no multiple of the threads per
row."""
BACKWARD_THREADS_PER_ROW = 384
"""Backward: at most this many threads share a row."""
MAX_STAGES = 2
"""Backward: passes whose rows shared memory holds, the one that is computed and the next."""
RESERVED_BYTES = 1 << 10
"""Shared memory of a block that the sums over rows need, next to the stages."""
MAX_ROW_GROUPS = 341
"""A row group, the rows of one block, leaves three sums of C floats: the scratch has 1024 C."""

_forward = Kernel(
    "layernorm.cu",
    "layernorm_forward",
    "out:floatX* mean:f32* rstd:f32* inp:floatX* weight:floatX* bias:floatX* N:i32 C:i32 "
    "epsilon:f32",
)
_residual_forward = Kernel(
    "layernorm.cu",
    "residual_layernorm_forward",
    "residual:floatX* out:floatX* mean:f32* rstd:f32* inp1:floatX* inp2:floatX* weight:floatX* "
    "bias:floatX* N:i32 C:i32 epsilon:f32",
)
_backward = Kernel(
    "layernorm_backward.cu",
    "layernorm_backward",
    "dinp:floatX* partials:f32* dout:floatX* inp:floatX* weight:floatX* mean:f32* rstd:f32* "
    "N:i32 C:i32",
)
_backward_finish = Kernel(
    "layernorm_backward.cu",
    "layernorm_backward_finish",
    "dweight:f32* dbias:f32* dsum:f32*? partials:f32* num_row_groups:i32 C:i32",
)


def layernorm_forward(
    out: Array, mean: Array, rstd: Array, inp: Array, weight: Array, bias: Array
) -> None:
    """out = (inp - mean) * rstd * weight + bias, with rstd = 1 / sqrt(biased variance + 1e-5).

    Written: out (B, T, C) floatX; mean, rstd (B, T) float32. Read: inp (B, T, C); weight, bias
    (C,). Ba et al. 2016, arXiv:1607.06450; after llm.c layernorm.cuh.
    """
    C = inp.shape[-1]
    if on_host(out):
        inp, out = inp.reshape(-1, C), out.reshape(-1, C)
        _numpy_forward(out, mean.reshape(-1), rstd.reshape(-1), inp, weight, bias)
        return
    N = int(mean.size)
    launch = forward_launch(N, C, pack_size(out))
    _forward(out, mean, rstd, inp, weight, bias, N, C, EPSILON, launch=launch)


def residual_layernorm_forward(
    residual: Array,
    out: Array,
    mean: Array,
    rstd: Array,
    inp1: Array,
    inp2: Array,
    weight: Array,
    bias: Array,
) -> None:
    """residual = inp1 + inp2, and out = LayerNorm(residual).

    Written: residual, out (B, T, C) floatX; mean, rstd (B, T) float32. Read: inp1, inp2
    (B, T, C); weight, bias (C,). After llm.c layernorm.cuh, fused_residual_forward.
    """
    if on_host(out):
        C = out.shape[-1]
        flat_inp2, flat_mean, flat_rstd = inp2.reshape(-1, C), mean.reshape(-1), rstd.reshape(-1)
        residual, inp1 = residual.reshape(-1, C), inp1.reshape(-1, C)
        _numpy_forward(
            out.reshape(-1, C), flat_mean, flat_rstd, inp1, weight, bias, residual, flat_inp2
        )
        return
    N, C = int(mean.size), int(out.shape[-1])
    _residual_forward(
        residual,
        out,
        mean,
        rstd,
        inp1,
        inp2,
        weight,
        bias,
        N,
        C,
        EPSILON,
        launch=forward_launch(N, C, pack_size(out)),
    )


def layernorm_backward(
    dinp: Array,
    dweight: Array,
    dbias: Array,
    dout: Array,
    inp: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    partials: Array,
    dsum: Array | None = None,
) -> None:
    """Gradients of LayerNorm.

    Accumulated: dinp (B, T, C) floatX (the residual branch has already added its share); dweight,
    dbias (C,) float32; dsum (C,) float32, unless it is None: the sum of the rows of the new dinp,
    on a GPU before they are rounded. That is the gradient of the bias of the linear layer whose
    output was added to the residual; computing it here saves reading dinp again. Read: dout, inp
    (B, T, C); weight (C,); mean, rstd (B, T). Scratch: partials, flat float32, at least 1024 C
    elements.
    """
    if on_host(dinp):
        _numpy_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, partials)
        if dsum is not None:
            bias_backward(dsum, dinp, partials)
        return
    N, C = int(mean.size), int(inp.shape[-1])
    launch = backward_launch(N, C, pack_size(dinp), multiprocessors(dinp))
    num_row_groups = launch.grid  # a block's rows are one group
    _backward(dinp, partials, dout, inp, weight, mean, rstd, N, C, launch=launch)
    _backward_finish(
        dweight,
        dbias,
        dsum,
        partials,
        num_row_groups,
        C,
        launch=column_sums_launch(C, 2 if dsum is None else 3, defines=launch.defines),
        like=dinp,
    )


def forward_launch(N: int, C: int, per_pack: int) -> Launch:
    """How forward spreads N rows of C channels: see the picture in cuda/layernorm.cu.

    `per_pack` is the number of elements of a pack.
    """
    packs = ceil_div(C, WARP * per_pack)
    warps_per_row = 1 if packs <= SINGLE_WARP_PACKS else ceil_div(packs, LONG_ROW_PACKS)
    warps_per_row = min(warps_per_row, MAX_WARPS_PER_ROW)
    rows_per_block = BLOCK_WARPS if warps_per_row == 1 else 1
    return Launch(
        ceil_div(N, rows_per_block),
        rows_per_block * warps_per_row * WARP,
        defines={
            "WARPS_PER_ROW": warps_per_row,
            "PACKS_PER_THREAD": ceil_div(packs, warps_per_row),
        },
    )


def backward_launch(N: int, C: int, per_pack: int, processors: Multiprocessors) -> Launch:
    """How backward spreads N rows of C channels: see the picture in cuda/layernorm_backward.cu."""
    packs = ceil_div(C, per_pack)
    packs_per_thread = ceil_div(packs, BACKWARD_THREADS_PER_ROW)
    if packs <= WARP // 2:
        threads_per_row = 1 << (packs - 1).bit_length()  # a power of two: lanes add in pairs
    else:
        threads_per_row = ceil_div(packs, packs_per_thread * WARP) * WARP
    max_threads = _max_backward_threads(threads_per_row, packs_per_thread, per_pack)
    rows_per_pass = max(1, max_threads // threads_per_row)
    threads = threads_per_row * rows_per_pass
    # A stage holds the packs of dout, inp and dinp.
    stage_bytes = 3 * PACK_BYTES * packs_per_thread * threads
    stages = min(MAX_STAGES, (processors.shared_bytes_of_block - RESERVED_BYTES) // stage_bytes)
    # After the last row: three float sums of each column, for each row of a pass.
    sum_bytes = 3 * 4 * C * rows_per_pass if rows_per_pass > 1 else 0
    resident = processors.count * max(1, BACKWARD_THREADS // threads)
    return Launch(
        min(MAX_ROW_GROUPS, resident, ceil_div(N, rows_per_pass)),
        threads,
        shared_bytes=max(stages * stage_bytes, sum_bytes),
        defines={
            "THREADS_PER_ROW": threads_per_row,
            "ROWS_PER_PASS": rows_per_pass,
            "PACKS_PER_THREAD": packs_per_thread,
            "STAGES": stages,
        },
    )


def _max_backward_threads(threads_per_row: int, packs_per_thread: int, per_pack: int) -> int:
    """The limit of a block's threads in backward."""
    if threads_per_row <= WARP:  # many rows per pass: adding up their sums would take long
        return BACKWARD_THREADS // 2
    if packs_per_thread * per_pack > 8:  # their sums need more registers
        return BACKWARD_THREADS // 2
    if packs_per_thread > 1:
        return 512  # 128 registers each
    # Rounds 768 / threads_per_row up if its fraction is 2/5 or more.
    return min(BACKWARD_THREADS + threads_per_row * 3 // 5, MAX_BACKWARD_THREADS)


def _numpy_forward(
    out: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    inp: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    total: np.ndarray | None = None,
    addend: np.ndarray | None = None,
) -> None:
    """out = LayerNorm(inp), or with `total` and `addend`: of total = inp + addend."""
    C = inp.shape[-1]
    averaging = np.full(C, 1.0 / C, inp.dtype)  # a product with it is the fastest mean of a row

    def rows(start: int, stop: int) -> None:
        block = slice(start, stop)
        source, centred = inp[block], out[block]
        if total is not None and addend is not None:
            source = np.add(source, addend[block], out=total[block])
        np.matmul(source, averaging, out=mean[block])
        np.subtract(source, mean[block, None], out=centred)
        variance = np.einsum("nc,nc->n", centred, centred) / C
        np.divide(1.0, np.sqrt(variance + EPSILON), out=rstd[block])
        centred *= rstd[block, None]
        centred *= weight
        centred += bias

    for_blocks(rows, len(inp), max(1, BLOCK_ELEMENTS // C))


def _numpy_backward(
    dinp: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
    dout: np.ndarray,
    inp: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    partials: np.ndarray,
) -> None:
    C = inp.shape[-1]
    dinp, dout, inp = dinp.reshape(-1, C), dout.reshape(-1, C), inp.reshape(-1, C)
    mean, rstd = mean.reshape(-1), rstd.reshape(-1)
    block_rows = max(1, BLOCK_ELEMENTS // C)
    # Each block leaves one partial sum. They are added in block order, so the bits do not depend on
    # which thread finishes first.
    block_rows = max(block_rows, -(-len(inp) // MAX_ROW_GROUPS))
    num_blocks = -(-len(inp) // block_rows)
    averaging = weight / C
    dweights, dbiases = np.empty((2, num_blocks, C), dinp.dtype)

    def rows(start: int, stop: int) -> None:
        block = slice(start, stop)
        normed = inp[block] - mean[block, None]
        normed *= rstd[block, None]
        index = start // block_rows
        np.einsum("nc,nc->c", dout[block], normed, out=dweights[index])
        np.sum(dout[block], axis=0, out=dbiases[index])
        dnormed = dout[block] * weight
        normed *= np.einsum("nc,nc->n", dnormed, normed)[:, None] / C
        normed += (dout[block] @ averaging)[:, None]
        dnormed -= normed
        dnormed *= rstd[block, None]
        dinp[block] += dnormed

    for_blocks(rows, len(inp), block_rows)
    accumulate((dweight, dweights.sum(axis=0)), (dbias, dbiases.sum(axis=0)))
