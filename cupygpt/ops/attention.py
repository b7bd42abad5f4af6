"""Causal multi-head attention over the unpermuted (B, T, 3, NH, HS) product of the qkv layer.

Forward keeps one float per query, the log of its softmax denominator; backward recomputes the
probabilities from it (Dao et al. 2022, arXiv:2205.14135).
"""

import math
from collections.abc import Iterator
from functools import cache

import numpy as np

from cupygpt.ops.host import for_blocks, num_cores, on_host
from cupygpt.tensors import Array

QUERY_BLOCK = 64
"""Queries handled at once on the CPU; keys after the block's last query are skipped."""


def attention_forward(out: Array, lse: Array, qkv: Array, NH: int) -> None:
    """out[b, t] = sum over s <= t of softmax(q_t · k_s / sqrt(HS)) v_s, per head.

    Written: out (B, T, C) floatX; lse (B, NH, T) float32, the log-sum-exp of each query's scaled
    scores. Read: qkv (B, T, 3C). Vaswani et al. 2017, arXiv:1706.03762.
    """
    assert on_host(out)
    B, T, _ = out.shape
    heads_out = _heads(out, NH)
    queries, keys, values = _split_heads(qkv, NH)

    def batch_rows(first: int, last: int) -> None:
        for b, rows, past in _query_blocks(first, last, T):
            scores = _scaled(queries[b, :, rows]) @ keys[b, :, past].swapaxes(-1, -2)
            scores[..., rows] += _causal_mask(rows.stop - rows.start, scores.dtype.str)
            largest = scores.max(axis=-1, keepdims=True)
            scores -= largest
            np.exp(scores, out=scores)
            denominator = scores.sum(axis=-1, keepdims=True)
            lse[b, :, rows] = (largest + np.log(denominator))[..., 0]
            np.divide(scores @ values[b, :, past], denominator, out=heads_out[b, :, rows])

    for_blocks(batch_rows, B, -(-B // num_cores()))


def attention_backward(
    dqkv: Array, dout: Array, qkv: Array, out: Array, lse: Array, NH: int
) -> None:
    """Gradient of attention_forward with respect to qkv.

    Written: dqkv (B, T, 3C) floatX. Read: dout, out (B, T, C); qkv (B, T, 3C); lse (B, NH, T).
    """
    assert on_host(dqkv)
    B, T, _ = dout.shape
    dheads, heads_out = _heads(dout, NH), _heads(out, NH)
    queries, keys, values = _split_heads(qkv, NH)
    dqueries, dkeys, dvalues = _split_heads(dqkv, NH)

    def batch_rows(first: int, last: int) -> None:
        dkeys[first:last], dvalues[first:last] = 0.0, 0.0
        for b, rows, past in _query_blocks(first, last, T):
            scaled, dblock = _scaled(queries[b, :, rows]), dheads[b, :, rows]
            probs = scaled @ keys[b, :, past].swapaxes(-1, -2)
            probs[..., rows] += _causal_mask(rows.stop - rows.start, probs.dtype.str)
            probs -= lse[b, :, rows, None]
            np.exp(probs, out=probs)
            dvalues[b, :, past] += probs.swapaxes(-1, -2) @ dblock
            dscores = dblock @ values[b, :, past].swapaxes(-1, -2)
            dscores -= (dblock * heads_out[b, :, rows]).sum(axis=-1, keepdims=True)
            dscores *= probs
            dqueries[b, :, rows] = _scaled(dscores @ keys[b, :, past])
            dkeys[b, :, past] += dscores.swapaxes(-1, -2) @ scaled

    for_blocks(batch_rows, B, -(-B // num_cores()))


def attention_decode(out: Array, cache: Array, qkv: Array, start: int, NH: int) -> None:
    """Attention of T new positions over a cache of the past: no product is computed twice.

    Written: out (T, C); cache (2, NH, maxT, HS) at positions start to start + T - 1, with the new
    keys (row 0) and values (row 1). Read: qkv (T, 3C), the cache before `start`.
    """
    assert on_host(out)
    T = len(qkv)
    queries, keys, values = _split_heads(qkv[None], NH)
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


def _query_blocks(first: int, last: int, T: int) -> Iterator[tuple[int, slice, slice]]:
    """(batch row, queries, keys up to the last of these queries) for batch rows [first, last)."""
    for b in range(first, last):
        for start in range(0, T, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, T)
            yield b, slice(start, stop), slice(0, stop)


def _scaled(array: Array) -> Array:
    """array / sqrt(HS); queries are scaled rather than scores, which are many more."""
    return array * (1.0 / math.sqrt(array.shape[-1]))


@cache
def _causal_mask(size: int, dtype: str) -> np.ndarray:
    """(size, size) of -inf above the diagonal, else 0: adding is faster than masked assignment."""
    return np.triu(np.full((size, size), -np.inf, dtype), 1)
