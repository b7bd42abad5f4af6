"""Causal multi-head attention over the unpermuted (B, T, 3, NH, HS) product of the qkv layer.

Forward keeps one float per query, the log of its softmax denominator; backward recomputes the
probabilities from it (Dao et al. 2022, arXiv:2205.14135).
"""

import math

import numpy as np

from cupygpt.ops.host import for_blocks, on_host
from cupygpt.tensors import Array

QUERY_BLOCK = 128
"""Queries handled at once on the CPU; keys after the block's last query are skipped."""


def attention_forward(out: Array, lse: Array, qkv: Array, NH: int) -> None:
    """out[b, t] = sum over s <= t of softmax(q_t · k_s / sqrt(HS)) v_s, per head.

    Written: out (B, T, C) floatX; lse (B, NH, T) float32, the log-sum-exp of each query's scaled
    scores. Read: qkv (B, T, 3C). Vaswani et al. 2017, arXiv:1706.03762.
    """
    assert on_host(out)
    B, T, C = out.shape
    heads_out = out.reshape(B, T, NH, -1).transpose(0, 2, 1, 3)
    queries, keys, values = _split_heads(qkv, NH)

    def batch_rows(first: int, last: int) -> None:
        for b in range(first, last):
            for start in range(0, T, QUERY_BLOCK):
                stop = min(start + QUERY_BLOCK, T)
                scores = _masked_scores(queries[b], keys[b], start, stop)
                largest = scores.max(axis=-1, keepdims=True)
                scores -= largest
                np.exp(scores, out=scores)
                denominator = scores.sum(axis=-1, keepdims=True)
                lse[b, :, start:stop] = (largest + np.log(denominator))[..., 0]
                scores /= denominator
                heads_out[b, :, start:stop] = scores @ values[b, :, :stop]

    for_blocks(batch_rows, B, 1)


def attention_backward(
    dqkv: Array, dout: Array, qkv: Array, out: Array, lse: Array, NH: int
) -> None:
    """Gradient of attention_forward with respect to qkv.

    Written: dqkv (B, T, 3C) floatX. Read: dout, out (B, T, C); qkv (B, T, 3C); lse (B, NH, T).
    """
    assert on_host(dqkv)
    B, T, _ = dout.shape
    dheads = dout.reshape(B, T, NH, -1).transpose(0, 2, 1, 3)
    heads_out = out.reshape(B, T, NH, -1).transpose(0, 2, 1, 3)
    queries, keys, values = _split_heads(qkv, NH)
    dqueries, dkeys, dvalues = _split_heads(dqkv, NH)
    scale = 1.0 / math.sqrt(queries.shape[-1])

    def batch_rows(first: int, last: int) -> None:
        for b in range(first, last):
            dkeys[b], dvalues[b] = 0.0, 0.0
            for start in range(0, T, QUERY_BLOCK):
                stop = min(start + QUERY_BLOCK, T)
                rows = slice(start, stop)
                probs = _masked_scores(queries[b], keys[b], start, stop)
                probs -= lse[b, :, rows, None]
                np.exp(probs, out=probs)
                dvalues[b, :, :stop] += probs.swapaxes(-1, -2) @ dheads[b, :, rows]
                dscores = dheads[b, :, rows] @ values[b, :, :stop].swapaxes(-1, -2)
                dscores -= np.einsum(
                    "htc,htc->ht", dheads[b, :, rows], heads_out[b, :, rows]
                )[..., None]
                dscores *= probs
                dscores *= scale
                dqueries[b, :, rows] = dscores @ keys[b, :, :stop]
                dkeys[b, :, :stop] += dscores.swapaxes(-1, -2) @ queries[b, :, rows]

    for_blocks(batch_rows, B, 1)


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


def _split_heads(qkv: Array, NH: int) -> tuple[Array, Array, Array]:
    """Views q, k, v (B, NH, T, HS) of a (B, T, 3C) array."""
    B, T, C3 = qkv.shape
    parts = qkv.reshape(B, T, 3, NH, C3 // (3 * NH)).transpose(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def _masked_scores(queries: Array, keys: Array, start: int, stop: int) -> Array:
    """Scaled scores (NH, stop - start, stop) of queries [start, stop); -inf for later keys."""
    scores = queries[:, start:stop] @ keys[:, :stop].swapaxes(-1, -2)
    scores *= 1.0 / math.sqrt(queries.shape[-1])
    scores[:, ~np.tri(stop - start, stop, start, dtype=bool)] = -np.inf
    return scores
