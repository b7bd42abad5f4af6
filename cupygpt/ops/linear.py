"""Matrix products of the model: y = x Wᵀ + b, and its gradients."""

from dataclasses import replace

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.batch_split import accumulate
from cupygpt.device.cpu_threads import for_blocks, on_host, share
from cupygpt.device.precision import Precision
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import WARP, Launch, ceil_div, pack_size
from cupygpt.kernels.matmul import matmul
from cupygpt.ops.bias import bias_backward
from cupygpt.ops.gelu import gelu_bias_backward, gelu_forward
from cupygpt.ops.layernorm import EPSILON

TILE_ELEMENTS = 1 << 18
"""dweight is accumulated in tiles of this many elements (1 MB), so that the temporary stays in
cache."""

FUSED_GELU_BYTES = 32 << 20
"""Tensors of this size or more do not stay in an H200's L2 cache until they are read again."""

MOST_FEW_ROWS = 4
"""Up to so many rows linear_few_rows is faster than a product of cuBLASLt and the kernels around
it."""
FEW_ROWS_BYTES = 46 << 10
"""Shared memory for them: with the sums of a block, what every GPU gives without asking."""
LEAST_WARPS = 4
MOST_TEAM_WARPS = 8
MOST_PACKS = 4
"""Packs of weights that a lane loads together, for each of its outputs."""
MANY_OUTPUTS, HEAD_OUTPUTS = 16384, 4
"""So many outputs keep any GPU busy with several for each warp, which reads its rows once."""

_FEW_ROWS = (
    "inp:floatX* weight:floatX* bias:floatX*? scale:floatX*? shift:floatX*? C:i32 OC:i32 "
    "out_stride:i32 epsilon:f32"
)
_few_rows = Kernel("linear.cu", "linear_few_rows", f"out:floatX* {_FEW_ROWS}")
_few_rows_float = Kernel("linear.cu", "linear_few_rows_float", f"out:f32* {_FEW_ROWS}")

LEAST_SHARE = 1 << 19
"""Multiplications per CPU thread, at least: fewer take less time than waking the thread."""


def linear_forward(
    out: Array, inp: Array, weight: Array, bias: Array | None, *, precision: Precision
) -> None:
    """out = inp @ weight.T + bias.

    Written: out (..., OC) floatX, or float32 without a bias. Read: inp (..., C), weight (OC, C),
    bias (OC,) or None. `precision` is the run's. After llm.c train_gpt2.c, matmul_forward.
    """
    OC, C = weight.shape
    out, inp = out.reshape(-1, OC), inp.reshape(-1, C)
    if on_host(out):
        _host_product(out, inp, weight.T, bias)
        return
    matmul(out, inp, weight, transpose_b=True, bias=bias, tf32=precision.rounds_products)


def linear_few_rows(
    out: Array,
    inp: Array,
    weight: Array,
    bias: Array | None,
    *,
    norm: tuple[Array, Array] | None = None,
    gelu: bool = False,
    accumulate: bool = False,
) -> None:
    """out = f(norm(inp) @ weight.T + bias), all in one kernel, for up to MOST_FEW_ROWS rows.

    `norm` has the weight and the bias (C,) of a LayerNorm of `inp`, None for none; f is GELU or
    nothing. With `accumulate`, out += that. Written, or updated in place: the first OC columns of
    out (N, >= OC) floatX, or float32 for logits. Read: inp (N, C), weight (OC, C), bias (OC,) or
    None. `fits_few_rows` says which rows a GPU takes.
    """
    N, (OC, C) = len(inp), weight.shape
    if on_host(out):
        _numpy_few_rows(out[:, :OC], inp, weight, bias, norm, gelu=gelu, accumulate=accumulate)
        return
    launch = few_rows_launch(N, C, OC, pack_size(inp))
    forms = {"NORM": int(norm is not None), "GELU": int(gelu), "ADD": int(accumulate)}
    launch = replace(launch, shared_bytes=int(inp.nbytes), defines={**launch.defines, **forms})
    scale, shift = norm or (None, None)
    stride = int(out.shape[1])
    kernel = _few_rows if out.dtype == inp.dtype else _few_rows_float
    kernel(out, inp, weight, bias, scale, shift, C, OC, stride, EPSILON, launch=launch)


def fits_few_rows(N: int, C: int, itemsize: int) -> bool:
    """Whether linear_few_rows takes N rows of C elements: a block holds them in shared memory."""
    return N <= MOST_FEW_ROWS and N * C * itemsize <= FEW_ROWS_BYTES


def few_rows_launch(N: int, C: int, OC: int, per_pack: int) -> Launch:
    """How the outputs are spread: see the picture in cuda/linear.cu."""
    packs = ceil_div(C, WARP * per_pack)
    team_warps = 1
    while ceil_div(packs, team_warps) > MOST_PACKS and team_warps < MOST_TEAM_WARPS:
        team_warps *= 2
    outputs = HEAD_OUTPUTS if OC >= MANY_OUTPUTS else 1
    warps = max(LEAST_WARPS, team_warps)
    return Launch(
        ceil_div(OC, warps // team_warps * outputs),
        warps * WARP,
        defines={
            "ROWS": N,
            "OUTPUTS": outputs,
            "TEAM_WARPS": team_warps,
            "WARPS": warps,
            "PACKS": min(MOST_PACKS, ceil_div(packs, team_warps)),
        },
    )


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


def _numpy_few_rows(
    out: np.ndarray,
    inp: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    norm: tuple[np.ndarray, np.ndarray] | None,
    *,
    gelu: bool,
    accumulate: bool,
) -> None:
    if norm is not None:
        centred = inp - inp.mean(axis=-1, keepdims=True)
        variance = np.einsum("nc,nc->n", centred, centred) / inp.shape[-1]
        inp = centred / np.sqrt(variance + EPSILON)[:, None] * norm[0] + norm[1]
    product = np.empty(out.shape, out.dtype)
    _host_product(product, inp, weight.T, bias)
    if gelu:
        gelu_forward(product, product.copy())
    if accumulate:
        product += out
    out[...] = product
