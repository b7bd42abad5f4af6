"""LayerNorm over the last axis, alone and fused with the residual addition before it."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.batch_split import accumulate
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import (
    PACK_BYTES,
    WARP,
    Defines,
    Launch,
    ceil_div,
    multiprocessors,
    pack_size,
)
from cupygpt.ops.bias import bias_backward, column_sums_launch

EPSILON = 1e-5
MAX_PARTS = 341
"""Blocks whose three sums fit the scratch of 1024 C elements."""
BLOCK_ELEMENTS = 1 << 16
"""Elements of one block on the CPU: a few temporaries of this size stay in the second-level cache."""

BLOCK_WARPS = 2
"""Where each has a row of its own: small blocks make room for the next as soon as they are done."""
SINGLE_WARP_PACKS = 8
"""Up to here one warp keeps a row, so many packs of it in each thread."""
TEAM_WARP_PACKS = 4
"""Packs per thread where a row takes more than one warp."""
MAX_TEAM_WARPS = 32

BACKWARD_THREADS = 768
"""Threads of backward on a multiprocessor, mostly in one block: they leave each other 80 registers."""
MOST_BACKWARD_THREADS = 896
"""What a block may take where its teams would leave many of these idle: 72 registers each."""
BACKWARD_TEAM = 384
"""Most threads of a row there."""
MAX_STAGES = 2
RESERVED_BYTES = 1 << 10
"""Shared memory for sums over a row."""

_forward = Kernel(
    "layernorm.cu",
    "layernorm_forward",
    "out:floatX* mean:f32* rstd:f32* inp:floatX* weight:floatX* bias:floatX* N:i32 C:i32",
)
_residual_forward = Kernel(
    "layernorm.cu",
    "residual_layernorm_forward",
    "residual:floatX* out:floatX* mean:f32* rstd:f32* inp1:floatX* inp2:floatX* weight:floatX* "
    "bias:floatX* N:i32 C:i32",
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
    "dweight:f32* dbias:f32* dsum:f32*? partials:f32* num_parts:i32 C:i32",
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
    _forward(
        out,
        mean,
        rstd,
        inp,
        weight,
        bias,
        N,
        C,
        launch=_forward_launch(N, row_defines(C, pack_size(out))),
    )


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
        launch=_forward_launch(N, row_defines(C, pack_size(out))),
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
    output was added to the residual: here dinp need not be read again. Read: dout, inp (B, T, C);
    weight (C,); mean, rstd (B, T). Scratch: partials, flat float32, at least 1024 C elements.
    """
    if on_host(dinp):
        _numpy_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, partials)
        if dsum is not None:
            bias_backward(dsum, dinp, partials)
        return
    N, C = int(mean.size), int(inp.shape[-1])
    processors = multiprocessors(dinp)
    defines = backward_defines(C, pack_size(dinp), processors.shared_bytes_of_block)
    team, teams = defines["TEAM"], defines["TEAMS"]
    stage_bytes = 3 * PACK_BYTES * defines["PACKS"] * team * teams
    sum_bytes = 12 * C * teams if teams > 1 else 0
    resident = processors.count * max(1, BACKWARD_THREADS // (team * teams))
    blocks = min(MAX_PARTS, resident, ceil_div(N, teams))
    _backward(
        dinp,
        partials,
        dout,
        inp,
        weight,
        mean,
        rstd,
        N,
        C,
        launch=Launch(
            blocks,
            team * teams,
            shared_bytes=max(defines["STAGES"] * stage_bytes, sum_bytes),
            defines=defines,
        ),
    )
    _backward_finish(
        dweight,
        dbias,
        dsum,
        partials,
        blocks,
        C,
        launch=column_sums_launch(C, 2 if dsum is None else 3, defines=defines),
        like=dinp,
    )


def row_defines(C: int, lanes: int) -> Defines:
    """How a row of C channels is spread over threads: warps per row, packs of `lanes` per thread."""
    packs = ceil_div(C, WARP * lanes)
    warps = 1 if packs <= SINGLE_WARP_PACKS else ceil_div(packs, TEAM_WARP_PACKS)
    warps = min(warps, MAX_TEAM_WARPS)
    return {"ROW_WARPS": warps, "ROW_PACKS": ceil_div(packs, warps)}


def backward_defines(C: int, lanes: int, shared_bytes: int) -> Defines:
    """How backward spreads a row of C channels: threads per row, rows per block, rows ahead.

    `shared_bytes` is what a block can have.
    """
    packs = ceil_div(C, lanes)
    packs_per_thread = ceil_div(packs, BACKWARD_TEAM)
    if packs <= WARP // 2:
        team = 1 << (packs - 1).bit_length()
    else:
        team = ceil_div(packs, packs_per_thread * WARP) * WARP
    # Short rows: the many teams of a large block would take long to add up. Many packs per thread:
    # fewer threads have room for their sums.
    if team <= WARP or packs_per_thread * lanes > 8:
        threads = BACKWARD_THREADS // 2
    else:
        threads = BACKWARD_THREADS if packs_per_thread == 1 else 512
    if packs_per_thread == 1 and threads == BACKWARD_THREADS:
        threads = min(threads + team * 3 // 5, MOST_BACKWARD_THREADS)
    teams = max(1, threads // team)
    stages = (shared_bytes - RESERVED_BYTES) // (3 * PACK_BYTES * packs_per_thread * team * teams)
    return {
        "TEAM": team,
        "TEAMS": teams,
        "PACKS": packs_per_thread,
        "STAGES": min(MAX_STAGES, stages),
    }


def _forward_launch(N: int, defines: Defines) -> Launch:
    warps = defines["ROW_WARPS"]
    teams = BLOCK_WARPS if warps == 1 else 1
    return Launch(ceil_div(N, teams), teams * warps * WARP, defines=defines)


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
    averaging = np.full(C, 1.0 / C, inp.dtype)  # a product with it is the fastest sum over rows

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
    # One partial sum per block, added up in block order: the same bits whatever thread was first.
    block_rows = max(block_rows, -(-len(inp) // MAX_PARTS))
    num_blocks = -(-len(inp) // block_rows)
    averaging = weight / C
    dweight_parts, dbias_parts = np.empty((2, num_blocks, C), dinp.dtype)

    def rows(start: int, stop: int) -> None:
        block = slice(start, stop)
        normed = inp[block] - mean[block, None]
        normed *= rstd[block, None]
        part = start // block_rows
        np.einsum("nc,nc->c", dout[block], normed, out=dweight_parts[part])
        np.sum(dout[block], axis=0, out=dbias_parts[part])
        dnormed = dout[block] * weight
        normed *= np.einsum("nc,nc->n", dnormed, normed)[:, None] / C
        normed += (dout[block] @ averaging)[:, None]
        dnormed -= normed
        dnormed *= rstd[block, None]
        dinp[block] += dnormed

    for_blocks(rows, len(inp), block_rows)
    accumulate((dweight, dweight_parts.sum(axis=0)), (dbias, dbias_parts.sum(axis=0)))
