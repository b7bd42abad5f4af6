"""Causal multi-head attention over the unpermuted (B, T, 3, NH, HS) product of the qkv layer.

Forward keeps one float per query, the log of its softmax denominator; backward recomputes the
probabilities from it (Dao et al. 2022, arXiv:2205.14135).

On a GPU there are three sets of kernels. Tensor cores take bfloat16 arrays, and float32 arrays
in TF32, for head sizes that are multiples of 16; they need compute capability 8.0. On
Hopper (9.0) bfloat16 with head sizes 64 and 128 has kernels of its own. CUDA cores take everything
else, in true float32.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host, share
from cupygpt.device.precision import Precision
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import WARP, Defines, Launch, ceil_div, is_hopper, multiprocessors
from cupygpt.ops.bias import add_column_sums, bias_backward

QUERY_BLOCK = 64
"""Queries handled at once on the CPU; keys after the block's last query are skipped."""

BLOCK_ELEMENTS = 1 << 18
"""Scores that a thread holds at once on the CPU: 1 MB of float32."""

THREADS = 128
"""Threads of a block in all attention kernels: four warps, on Hopper a warpgroup."""

TENSOR_CORE_MULTIPLE = 16
"""Head sizes that the tensor-core kernels take are multiples of this."""

HOPPER_HEAD_SIZES = (64, 128)

BUSY_BLOCKS = 512
"""With this many blocks of 128 rows a large GPU (132 SMs) stays busy, and warps own 32 rows instead
of 16: they load half as much from shared memory per product, but blocks are fewer and heavier."""

LARGE_BLOCK, SPLIT_KEYS = 512, 1024
"""Decoding: threads of a block if there are few heads, and the keys that it has at most."""

LSE_DELTA_BYTES = 8
"""A float2 of lse and delta for each query of a streamed tile."""

LEAST_ROW_GROUP = 32
"""Rows of the smallest row group: the kernels leave the sum of each group of rows of dqkv."""

_ROWS = "T:i32 NH:i32"
_DKDV = f"dqkv:floatX* sums:f32* dout:floatX* qkv:floatX* lse_delta:f32* {_ROWS}"
_DQ = f"dqkv:floatX* sums:f32* lse_delta:f32* dout:floatX* out:floatX* qkv:floatX* lse:f32* {_ROWS}"
_forward = Kernel(
    "attention/cuda_cores.cu", "attention_forward", f"out:floatX* lse:f32* qkv:floatX* {_ROWS}"
)
_dkdv = Kernel("attention/cuda_cores.cu", "attention_dkdv", _DKDV)
_dq = Kernel("attention/cuda_cores.cu", "attention_dq", _DQ)
_decode = Kernel(
    "attention/decode.cu",
    "attention_decode",
    "out:floatX* partials:f32*? cache:floatX* qkv:floatX* rows:i32* positions:i32* starts:i32* "
    "NH:i32 maxT:i32 splits:i32 split_keys:i32",
)
_merge = Kernel(
    "attention/decode.cu", "attention_decode_merge", "out:floatX* partials:f32* splits:i32"
)
_mma_forward = Kernel(
    "attention/mma_forward.cu",
    "attention_mma_forward",
    f"out:floatX* lse:f32* qkv:floatX* {_ROWS}",
)
_mma_dkdv = Kernel("attention/mma_backward.cu", "attention_mma_dkdv", _DKDV)
_mma_dq = Kernel("attention/mma_backward.cu", "attention_mma_dq", _DQ)
_wgmma_forward = Kernel(
    "attention/wgmma_forward.cu",
    "attention_wgmma_forward",
    f"out:floatX* lse:f32* qkv:floatX* {_ROWS}",
    arch="sm_90a",
)
_wgmma_dkdv = Kernel("attention/wgmma_backward.cu", "attention_wgmma_dkdv", _DKDV, arch="sm_90a")
_wgmma_dq = Kernel("attention/wgmma_backward.cu", "attention_wgmma_dq", _DQ, arch="sm_90a")


def attention_forward(out: Array, lse: Array, qkv: Array, NH: int, *, precision: Precision) -> None:
    """out[b, t] = sum over s <= t of softmax(q_t · k_s / sqrt(HS)) v_s, per head.

    Written: out (B, T, C) floatX; lse (B, NH, T) float32, the log-sum-exp of each query's scaled
    scores. Read: qkv (B, T, 3C). `precision` is the run's.
    Vaswani et al. 2017, arXiv:1706.03762.
    """
    if not on_host(out):
        B, T, C = out.shape
        forward = _kernels(out, C // NH, B * NH, T, precision).forward
        forward.kernel(out, lse, qkv, T, NH, launch=forward.launch(B * NH, T))
        return
    B, T, _ = out.shape
    heads_out = _heads(out, NH)
    queries, keys, values = _split_heads(qkv, NH)

    def batch_rows(first: int, last: int) -> None:
        b = slice(first, last)
        for rows, past in _query_blocks(T):
            scores = _scaled(queries[b, :, rows]) @ keys[b, :, past].swapaxes(-1, -2)
            scores[..., rows] += _causal_mask(rows.stop - rows.start, scores.dtype.str)
            largest = scores.max(axis=-1, keepdims=True)
            scores -= largest
            np.exp(scores, out=scores)
            denominator = scores.sum(axis=-1, keepdims=True)
            lse[b, :, rows] = (largest + np.log(denominator))[..., 0]
            np.divide(scores @ values[b, :, past], denominator, out=heads_out[b, :, rows])

    for_blocks(batch_rows, B, _batch_rows(B, NH, T))


def attention_backward(
    dqkv: Array,
    dbias: Array,
    dout: Array,
    qkv: Array,
    out: Array,
    lse: Array,
    NH: int,
    lse_delta: Array,
    sums: Array,
    *,
    precision: Precision,
) -> None:
    """Gradient of attention_forward with respect to qkv, and dbias += the sum of its rows.

    That is the gradient of the qkv layer's bias: a GPU has it at hand here, before dqkv is rounded.
    Written: dqkv (B, T, 3C) floatX. Accumulated: dbias (3C,) float32. Read: dout, out (B, T, C);
    qkv (B, T, 3C); lse (B, NH, T). Scratch, of a GPU: lse_delta (B, NH, T, 2) float32 for lse and
    rowsum(dout * out), sums (B, ceil(T / LEAST_ROW_GROUP), 3C) float32.
    """
    if not on_host(dqkv):
        B, T, C = dout.shape
        kernels = _kernels(dqkv, C // NH, B * NH, T, precision)
        dq, dkdv = kernels.dq, kernels.dkdv
        dq.kernel(dqkv, sums, lse_delta, dout, out, qkv, lse, T, NH, launch=dq.launch(B * NH, T))
        dkdv.kernel(dqkv, sums, dout, qkv, lse_delta, T, NH, launch=dkdv.launch(B * NH, T))
        add_column_sums(dbias, sums, B * ceil_div(T, kernels.row_group), like=dqkv)
        return
    B, T, _ = dout.shape
    dheads, heads_out = _heads(dout, NH), _heads(out, NH)
    queries, keys, values = _split_heads(qkv, NH)
    dqueries, dkeys, dvalues = _split_heads(dqkv, NH)

    def batch_rows(first: int, last: int) -> None:
        b = slice(first, last)
        dkeys[b], dvalues[b] = 0.0, 0.0
        shift = np.einsum("bhtc,bhtc->bht", dheads[b], heads_out[b])[..., None]
        for rows, past in _query_blocks(T):
            scaled, dblock = _scaled(queries[b, :, rows]), dheads[b, :, rows]
            probs = scaled @ keys[b, :, past].swapaxes(-1, -2)
            probs[..., rows] += _causal_mask(rows.stop - rows.start, probs.dtype.str)
            probs -= lse[b, :, rows, None]
            np.exp(probs, out=probs)
            dvalues[b, :, past] += probs.swapaxes(-1, -2) @ dblock
            dscores = dblock @ values[b, :, past].swapaxes(-1, -2)
            dscores -= shift[:, :, rows]
            dscores *= probs
            dqueries[b, :, rows] = _scaled(dscores @ keys[b, :, past])
            dkeys[b, :, past] += dscores.swapaxes(-1, -2) @ scaled

    for_blocks(batch_rows, B, _batch_rows(B, NH, T))
    bias_backward(dbias, dqkv, sums)


def attention_decode(
    out: Array,
    cache: Array,
    qkv: Array,
    rows: Array,
    positions: Array,
    starts: Array,
    NH: int,
    partials: Array,
) -> None:
    """Attention of N new positions of several texts over a cache of the past.

    A text has a row of the cache. Its new positions are neighbours, in their order, from
    `starts[n]` to `positions[n]`. Written: out (N, C); cache (R, 2, NH, maxT, HS) at the new
    positions, with keys (0) and values (1). Read: qkv (N, 3C); rows, positions, starts (N,) int32;
    the cache before `starts`. Scratch, of a GPU: partials, float32; if it has not the elements that
    `decode_partials` says for N rows, the keys are not split among blocks.
    """
    N, (_, _, _, maxT, HS) = len(qkv), cache.shape
    if on_host(out):
        bounds = [0, *(np.flatnonzero(np.diff(rows)) + 1), N] if N > 1 else [0, 1]
        for first, last in itertools.pairwise(bounds):
            of_row, start = slice(first, last), int(starts[first])
            _numpy_decode(out[of_row], cache[rows[first]], qkv[of_row], start, NH)
        return
    is_small = 2 * multiprocessors(out).count > N * NH
    threads = LARGE_BLOCK if is_small else THREADS
    has_room = partials.size >= decode_partials(N, NH, HS, maxT)
    splits = ceil_div(maxT, SPLIT_KEYS) if is_small and has_room else 1
    launch = Launch(N * NH * splits, threads, defines={"HS": HS, "THREADS": threads})
    _decode(
        out, partials, cache, qkv, rows, positions, starts, NH, maxT, splits,
        ceil_div(maxT, splits), launch=launch,
    )  # fmt: skip
    if splits > 1:
        merge = Launch(N * NH, threads, defines=launch.defines)
        _merge(out, partials, splits, launch=merge)


def decode_partials(N: int, NH: int, HS: int, maxT: int) -> int:
    """Elements of `partials` in attention_decode for N new positions."""
    return N * NH * ceil_div(maxT, SPLIT_KEYS) * (HS + 2)


def _numpy_decode(out: Array, cache: Array, qkv: Array, start: int, NH: int) -> None:
    """The new positions of one text."""
    T, (queries, keys, values) = len(qkv), _split_heads(qkv[None], NH)
    stop = start + T
    cache[0, :, start:stop], cache[1, :, start:stop] = keys[0], values[0]
    scores = queries[0] @ cache[0, :, :stop].swapaxes(-1, -2)
    scores *= 1.0 / math.sqrt(queries.shape[-1])
    if T > 1:
        scores[:, ~np.tri(T, stop, start, dtype=bool)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    out.reshape(T, NH, -1)[...] = (scores @ cache[1, :, :stop]).transpose(1, 0, 2)


def _heads(array: Array, NH: int) -> Array:
    """View (B, NH, T, HS) of a (B, T, C) array."""
    B, T, C = array.shape
    return array.reshape(B, T, NH, C // NH).transpose(0, 2, 1, 3)


def _split_heads(qkv: Array, NH: int) -> tuple[Array, Array, Array]:
    """Views q, k, v (B, NH, T, HS) of a (B, T, 3C) array."""
    C = qkv.shape[-1] // 3
    return (
        _heads(qkv[..., :C], NH),
        _heads(qkv[..., C : 2 * C], NH),
        _heads(qkv[..., 2 * C :], NH),
    )


def _query_blocks(T: int) -> Iterator[tuple[slice, slice]]:
    """(queries, keys up to the last of these queries), block by block."""
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        yield slice(start, stop), slice(0, stop)


def _batch_rows(B: int, NH: int, T: int) -> int:
    """Batch rows that a thread takes together: even shares, as long as their scores fit a cache."""
    fitting = BLOCK_ELEMENTS // (NH * QUERY_BLOCK * T)
    return max(1, min(fitting, share(B, 1)))


def _scaled(array: Array) -> Array:
    """array / sqrt(HS); queries are scaled rather than scores, which are many more."""
    return array * (1.0 / math.sqrt(array.shape[-1]))


@cache
def _causal_mask(size: int, dtype: str) -> np.ndarray:
    """(size, size) of -inf above the diagonal, else 0: adding is faster than masked assignment."""
    return np.triu(np.full((size, size), -np.inf, dtype), 1)


@dataclass(frozen=True)
class _BlockPlan:
    """One kernel for one head size: its constants, and what a block owns and needs."""

    kernel: Kernel
    defines: Defines
    block_rows: int
    """Queries (of dkdv: keys) that a block owns."""
    shared_bytes: int
    column_splits: int = 1
    """Blocks that share the columns of these rows."""

    def launch(self, num_heads: int, T: int) -> Launch:
        """The launch for `num_heads` = B * NH heads of T rows."""
        blocks = num_heads * ceil_div(T, self.block_rows) * self.column_splits
        return Launch(blocks, THREADS, self.shared_bytes, self.defines)


class _Kernels(NamedTuple):
    """The three kernels that a model's attention runs."""

    forward: _BlockPlan
    dkdv: _BlockPlan
    dq: _BlockPlan
    row_group: int
    """Rows of dqkv whose sum is one row of `sums`."""


def _kernels(array: Array, HS: int, num_heads: int, T: int, precision: Precision) -> _Kernels:
    """The kernels for arrays like `array`."""
    is_bfloat16 = precision.rounds_storage
    if HS % TENSOR_CORE_MULTIPLE or not precision.uses_tensor_cores:
        return _cuda_core_kernels(HS)
    if is_bfloat16 and HS in HOPPER_HEAD_SIZES and is_hopper(array):
        return _hopper_kernels(HS)
    busy = num_heads * ceil_div(T, 128) >= BUSY_BLOCKS
    return _tensor_core_kernels(HS, is_bfloat16=is_bfloat16, busy=busy)


@cache
def _cuda_core_kernels(HS: int) -> _Kernels:
    """The largest tiles that leave every kernel within 64 KiB of shared memory, all of sm_75."""
    rows, tile_rows = 64 if HS <= 64 else 32, 32 if HS <= 96 else 16
    # Four floats more than a row: eight rows then begin in different banks.
    pitch, score_pitch = HS + 4, tile_rows + 4
    defines = {
        "HS": HS,
        "THREADS": THREADS,
        "BLOCK_ROWS": rows,
        "TILE_ROWS": tile_rows,
        "PITCH": pitch,
        "SCORE_PITCH": score_pitch,
    }

    def plan(kernel: Kernel, own_matrices: int) -> _BlockPlan:
        floats = (own_matrices * rows + 2 * tile_rows) * pitch + rows * score_pitch
        return _BlockPlan(kernel, defines, rows, 4 * floats)

    return _Kernels(plan(_forward, 1), plan(_dkdv, 2), plan(_dq, 2), rows)


@cache
def _tensor_core_kernels(HS: int, *, is_bfloat16: bool, busy: bool) -> _Kernels:
    """Two stages of two streamed tiles each; 32 rows per warp where registers allow it.

    Registers set the limits below: with these choices none of the usual head sizes spills more than
    a few registers, on any architecture.
    """
    tile_rows = 64 if is_bfloat16 else 32
    row_bytes = HS * (2 if is_bfloat16 else 4) + 16  # padded, so that rows begin in other banks
    stage_bytes = 2 * tile_rows * row_bytes
    forward_tiles = 2 if busy and HS <= 64 else 1
    dq_tiles = 2 if busy and HS <= 64 and is_bfloat16 else 1
    dkdv_tiles = 2 if busy and HS <= 32 and is_bfloat16 else 1
    column_splits = 2 if HS == 128 and not is_bfloat16 else 1
    warps = THREADS // WARP
    forward = {"HS": HS, "WARPS": warps, "TILES": forward_tiles, "KEYS": tile_rows}
    backward = {
        "HS": HS,
        "WARPS": warps,
        "TILE_ROWS": tile_rows,
        "DKDV_TILES": dkdv_tiles,
        "COLUMN_SPLITS": column_splits,
        "DQ_TILES": dq_tiles,
    }
    rows = 16 * warps
    dkdv_bytes = 2 * stage_bytes + 2 * tile_rows * LSE_DELTA_BYTES
    return _Kernels(
        _BlockPlan(_mma_forward, forward, rows * forward_tiles, 2 * stage_bytes),
        _BlockPlan(_mma_dkdv, backward, rows * dkdv_tiles, dkdv_bytes, column_splits),
        _BlockPlan(_mma_dq, backward, rows * dq_tiles, 2 * stage_bytes),
        rows,
    )


@cache
def _hopper_kernels(HS: int) -> _Kernels:
    """Blocks of one warpgroup, as many per SM as registers allow; the fastest tiles on an H200."""
    small = HS == 64
    rows = 64  # of a block, and of a streamed tile
    tile_bytes = rows * HS * 2
    forward = {"HS": HS, "KEYS": rows, "STAGES": 3, "BLOCKS": 4 if small else 2}
    backward = {
        "HS": HS,
        "STAGES": 2,
        "DKDV_BLOCKS": 3 if small else 2,
        "DQ_BLOCKS": 4 if small else 2,
    }
    backward_bytes = 2 * (1 + backward["STAGES"]) * tile_bytes
    dkdv_bytes = backward_bytes + backward["STAGES"] * rows * LSE_DELTA_BYTES
    return _Kernels(
        _BlockPlan(_wgmma_forward, forward, rows, (1 + 2 * forward["STAGES"]) * tile_bytes),
        _BlockPlan(_wgmma_dkdv, backward, rows, dkdv_bytes),
        _BlockPlan(_wgmma_dq, backward, rows, backward_bytes),
        rows,
    )
