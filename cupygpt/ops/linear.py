"""Matrix products of the model: y = x Wᵀ + b, and its gradients."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.batch_split import accumulate
from cupygpt.device.cpu_threads import for_blocks, on_host, share
from cupygpt.device.precision import Precision
from cupygpt.kernels.matmul import matmul
from cupygpt.ops.bias import bias_backward
from cupygpt.ops.gelu import gelu_bias_backward, gelu_forward

TILE_ELEMENTS = 1 << 18
"""dweight is accumulated in tiles of this many elements (1 MB), so that the temporary stays in
cache."""

FUSED_GELU_BYTES = 32 << 20
"""Tensors of this size or more do not stay in an H200's L2 cache until they are read again."""

LEAST_SHARE = 1 << 19
"""Multiplications per CPU thread, at least: fewer take less time than waking the thread."""


def linear_forward(
    out: Array, inp: Array, weight: Array, bias: Array | None, *, precision: Precision
) -> None:
    """out = inp @ weight.T + bias.

    Written: out (..., OC) floatX. Read: inp (..., C), weight (OC, C), bias (OC,) or None.
    `precision` is the run's. After llm.c train_gpt2.c, matmul_forward.
    """
    OC, C = weight.shape
    out, inp = out.reshape(-1, OC), inp.reshape(-1, C)
    if on_host(out):
        _host_product(out, inp, weight.T, bias)
        return
    matmul(out, inp, weight, transpose_b=True, bias=bias, tf32=precision.rounds_products)


def linear_backward(
    dinp: Array,
    dweight: Array,
    dbias: Array | None,
    dout: Array,
    inp: Array,
    weight: Array,
    partials: Array,
    *,
    precision: Precision,
) -> None:
    """Gradients of linear_forward.

    Written: dinp (..., C) floatX. Accumulated: dweight (OC, C) float32, dbias (OC,) float32 or
    None. Read: dout (..., OC), inp (..., C), weight (OC, C). Scratch: partials, flat float32, at
    least 256 OC elements if there is a bias. After llm.c train_gpt2.c, matmul_backward.
    """
    OC, C = weight.shape
    dinp, dout, inp = dinp.reshape(-1, C), dout.reshape(-1, OC), inp.reshape(-1, C)
    if on_host(dinp):
        _host_backward(dinp, dweight, dbias, dout, inp, weight)
        return
    tf32 = precision.rounds_products
    matmul(dinp, dout, weight, tf32=tf32)
    matmul(dweight, dout, inp, transpose_a=True, accumulate=True, tf32=tf32)
    if dbias is not None:
        bias_backward(dbias, dout, partials)


def linear_gelu_forward(
    out: Array,
    hidden: Array,
    inp: Array,
    weight: Array,
    bias: Array,
    *,
    precision: Precision,
) -> None:
    """hidden = inp @ weight.T + bias, and out = gelu(hidden).

    Written: out, hidden (..., OC) floatX. The rest as in linear_forward. On a GPU in bfloat16 the
    product applies the GELU to its sums, before they are rounded. In float32 that costs more than a
    separate kernel.
    """
    if on_host(out) or not precision.rounds_storage:
        linear_forward(hidden, inp, weight, bias, precision=precision)
        gelu_forward(out, hidden)
        return
    OC, C = weight.shape
    matmul(
        out.reshape(-1, OC),
        inp.reshape(-1, C),
        weight,
        transpose_b=True,
        bias=bias,
        epilogue="gelu",
        aux=hidden.reshape(-1, OC),
    )


def gelu_linear_backward(
    dhidden: Array,
    dweight: Array,
    dbias: Array | None,
    dhidden_bias: Array,
    dout: Array,
    hidden: Array,
    inp: Array,
    weight: Array,
    partials: Array,
    *,
    precision: Precision,
) -> None:
    """Gradients of out = inp @ weight.T + bias, where inp = gelu(hidden).

    Written: dhidden (..., C) floatX, the gradient of hidden. Accumulated: dhidden_bias (C,)
    float32, the sum of its rows. The rest as in linear_backward. For large bfloat16 tensors
    on a GPU the product applies the derivative. Small tensors stay in the L2 cache, and a separate
    kernel does it.
    """
    OC, C = weight.shape
    is_large = dhidden.nbytes >= FUSED_GELU_BYTES
    if on_host(dhidden) or not (precision.rounds_storage and is_large):
        linear_backward(dhidden, dweight, dbias, dout, inp, weight, partials, precision=precision)
        gelu_bias_backward(dhidden, dhidden_bias, hidden, inp, partials)
        return
    dout, inp = dout.reshape(-1, OC), inp.reshape(-1, C)
    matmul(dhidden.reshape(-1, C), dout, weight, epilogue="dgelu", aux=hidden.reshape(-1, C))
    bias_backward(dhidden_bias, dhidden, partials)
    matmul(dweight, dout, inp, transpose_a=True, accumulate=True)
    if dbias is not None:
        bias_backward(dbias, dout, partials)


def _host_product(out: Array, a: Array, b: Array, bias: Array | None = None) -> None:
    """out = a @ b + bias, the longer side of out shared among the cores."""
    num_rows, num_columns = out.shape
    inner = a.shape[1]

    def rows(start: int, stop: int) -> None:
        np.matmul(a[start:stop], b, out=out[start:stop])
        if bias is not None:
            out[start:stop] += bias

    def columns(start: int, stop: int) -> None:
        np.matmul(a, b[:, start:stop], out=out[:, start:stop])
        if bias is not None:
            out[:, start:stop] += bias[start:stop]

    if num_rows >= num_columns:
        for_blocks(rows, num_rows, share(num_rows, LEAST_SHARE // (num_columns * inner)))
    else:
        for_blocks(columns, num_columns, share(num_columns, LEAST_SHARE // (num_rows * inner)))


def _host_backward(
    dinp: Array, dweight: Array, dbias: Array | None, dout: Array, inp: Array, weight: Array
) -> None:
    _host_product(dinp, dout, weight)
    OC, C = weight.shape
    # NumPy offers no product that adds to its output; tiles keep the sum inside the cache.
    least = LEAST_SHARE // (len(inp) * C)
    tile_rows = max(1, min(share(OC, least), TILE_ELEMENTS // C))

    def rows(start: int, stop: int) -> None:
        sums = [(dweight[start:stop], dout[:, start:stop].T @ inp)]
        if dbias is not None:
            sums.append((dbias[start:stop], np.add.reduce(dout[:, start:stop], axis=0)))
        accumulate(*sums)

    for_blocks(rows, OC, tile_rows)
