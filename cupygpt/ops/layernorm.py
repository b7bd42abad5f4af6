"""LayerNorm over the last axis, alone and fused with the residual addition before it."""

import numpy as np

from cupygpt.ops.host import for_blocks, on_host
from cupygpt.tensors import Array

EPSILON = 1e-5
MAX_PARTS = 512
"""Blocks whose sums fit the scratch of 1024 C elements."""
BLOCK_ELEMENTS = 1 << 17
"""Elements of one block on the CPU: a few temporaries of this size stay in the second-level cache."""


def layernorm_forward(
    out: Array, mean: Array, rstd: Array, inp: Array, weight: Array, bias: Array
) -> None:
    """out = (inp - mean) * rstd * weight + bias, with rstd = 1 / sqrt(biased variance + 1e-5).

    Written: out (B, T, C) floatX; mean, rstd (B, T) float32. Read: inp (B, T, C); weight, bias
    (C,). Ba et al. 2016, arXiv:1607.06450; after llm.c layernorm.cuh.
    """
    assert on_host(out)
    C = inp.shape[-1]
    out, inp = out.reshape(-1, C), inp.reshape(-1, C)
    mean, rstd = mean.reshape(-1), rstd.reshape(-1)

    def rows(start: int, stop: int) -> None:
        block = slice(start, stop)
        centred = out[block]
        np.mean(inp[block], axis=1, out=mean[block])
        np.subtract(inp[block], mean[block, None], out=centred)
        variance = np.einsum("nc,nc->n", centred, centred) / C
        np.divide(1.0, np.sqrt(variance + EPSILON), out=rstd[block])
        centred *= rstd[block, None]
        centred *= weight
        centred += bias

    for_blocks(rows, len(inp), max(1, BLOCK_ELEMENTS // C))


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
    assert on_host(out)
    np.add(inp1, inp2, out=residual)
    layernorm_forward(out, mean, rstd, residual, weight, bias)


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
) -> None:
    """Gradients of LayerNorm.

    Accumulated: dinp (B, T, C) floatX (the residual branch has already added its share); dweight,
    dbias (C,) floatX. Read: dout, inp (B, T, C); weight (C,); mean, rstd (B, T). Scratch: partials, flat float32, at least 1024 C elements.
    """
    assert on_host(dinp)
    C = inp.shape[-1]
    dinp, dout, inp = dinp.reshape(-1, C), dout.reshape(-1, C), inp.reshape(-1, C)
    mean, rstd = mean.reshape(-1), rstd.reshape(-1)
    block_rows = max(1, BLOCK_ELEMENTS // C)
    # One partial sum per block, added up in block order: the same bits whatever thread was first.
    block_rows = max(block_rows, -(-len(inp) // MAX_PARTS))
    num_blocks = -(-len(inp) // block_rows)
    parts = partials[: 2 * num_blocks * C].reshape(2, num_blocks, C)
    dweight_parts, dbias_parts = parts[0], parts[1]

    def rows(start: int, stop: int) -> None:
        block = slice(start, stop)
        normed = inp[block] - mean[block, None]
        normed *= rstd[block, None]
        part = start // block_rows
        np.einsum("nc,nc->c", dout[block], normed, out=dweight_parts[part])
        np.sum(dout[block], axis=0, out=dbias_parts[part])
        dnormed = dout[block] * weight
        dnormed_mean = dnormed.mean(axis=1, keepdims=True)
        projection = np.einsum("nc,nc->n", dnormed, normed)[:, None] / C
        dnormed -= dnormed_mean
        normed *= projection
        dnormed -= normed
        dnormed *= rstd[block, None]
        dinp[block] += dnormed

    for_blocks(rows, len(inp), block_rows)
    dweight += dweight_parts.sum(axis=0)
    dbias += dbias_parts.sum(axis=0)
