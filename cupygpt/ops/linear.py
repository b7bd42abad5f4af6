"""Matrix products of the model: y = x Wᵀ + b, and its gradients."""

import numpy as np

from cupygpt.ops.host import on_host
from cupygpt.tensors import Array

TILE_ELEMENTS = 1 << 18
"""Elements of dweight that are computed beside it before they are added: 1 MB of float32."""


def linear_forward(out: Array, inp: Array, weight: Array, bias: Array | None) -> None:
    """out = inp @ weight.T + bias.

    Written: out (..., OC) floatX. Read: inp (..., C), weight (OC, C), bias (OC,) or None.
    After llm.c train_gpt2.c, matmul_forward.
    """
    assert on_host(out)
    OC, C = weight.shape
    out = out.reshape(-1, OC)
    np.matmul(inp.reshape(-1, C), weight.T, out=out)
    if bias is not None:
        out += bias


def linear_backward(
    dinp: Array,
    dweight: Array,
    dbias: Array | None,
    dout: Array,
    inp: Array,
    weight: Array,
    partials: Array,
) -> None:
    """Gradients of linear_forward.

    Written: dinp (..., C) floatX. Accumulated: dweight (OC, C), dbias (OC,) or None. Read: dout
    (..., OC), inp (..., C), weight (OC, C). Scratch: partials, flat float32, at least 256 OC
    elements where there is a bias. After llm.c train_gpt2.c, matmul_backward.
    """
    assert on_host(dinp)
    OC, C = weight.shape
    dout, inp = dout.reshape(-1, OC), inp.reshape(-1, C)
    np.matmul(dout, weight, out=dinp.reshape(-1, C))
    # NumPy offers no product that adds to its output; tiles keep the sum inside the cache.
    rows = min(OC, max(1, TILE_ELEMENTS // C))
    tile = np.empty((rows, C), dweight.dtype)
    for start in range(0, OC, rows):
        stop = min(start + rows, OC)
        np.matmul(dout[:, start:stop].T, inp, out=tile[: stop - start])
        dweight[start:stop] += tile[: stop - start]
    if dbias is not None:
        dbias += dout.sum(axis=0)
