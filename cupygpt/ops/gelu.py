"""GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415), as in GPT-2.

0.5 (1 + tanh u) equals the logistic function of 2u. That form needs one exp, which NumPy computes
with vector instructions on every CPU; its tanh is scalar on many.
"""

import math

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import launch_per_pack, num_packs
from cupygpt.ops.bias import SUM_DEFINES, RowSums, bias_backward

SCALE = 2.0 * math.sqrt(2.0 / math.pi)  # 2u = SCALE * (x + CUBIC * x³)
CUBIC = 0.044715
BLOCK_ELEMENTS = 1 << 18
"""Chosen larger than the L2 cache: smaller blocks spend their time waiting for the GIL."""
TINY = 1e-30
"""Keeps y / x finite at 0; too small to change it elsewhere."""

_forward = Kernel("gelu.cu", "gelu_forward", "out:floatX* inp:floatX* num_packs:i64")
_backward = Kernel("gelu.cu", "gelu_backward", "dinp:floatX* inp:floatX* num_packs:i64")
_backward_partials = Kernel(
    "gelu.cu",
    "gelu_backward_partials",
    "dinp:floatX* partials:f32* inp:floatX* N:i32 OC:i32 chunk_rows:i32",
)


def gelu_forward(out: Array, inp: Array) -> None:
    """out = 0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))).

    Written: out floatX. Read: inp, same shape. After llm.c gelu.cuh.
    """
    if on_host(out):
        _numpy_forward(out.reshape(-1), inp.reshape(-1))
        return
    packs = num_packs(out)
    _forward(out, inp, packs, launch=launch_per_pack(packs, SUM_DEFINES))


def gelu_backward(dinp: Array, inp: Array, out: Array) -> None:
    """dinp *= d gelu(inp) / d inp.

    Updated in place: dinp floatX (holds the gradient of the output). Read: inp and out, the output
    of gelu_forward, same shape. A GPU computes out again, which is faster than reading it.
    """
    if on_host(dinp):
        _numpy_backward(dinp.reshape(-1), inp.reshape(-1), out.reshape(-1))
        return
    packs = num_packs(dinp)
    _backward(dinp, inp, packs, launch=launch_per_pack(packs, SUM_DEFINES))


def gelu_bias_backward(dinp: Array, dbias: Array, inp: Array, out: Array, partials: Array) -> None:
    """gelu_backward, and dbias += the sum of the rows of dinp, in a fixed order.

    The sum is the gradient of the bias of the linear layer before the GELU. Summing here saves
    reading dinp again. Updated in place: dinp (..., OC) floatX. Accumulated: dbias (OC,) float32,
    on a GPU from dinp before it is rounded. Read: inp, out as in gelu_backward. Scratch: partials,
    flat float32, at least 256 OC elements.
    """
    if on_host(dinp):
        gelu_backward(dinp, inp, out)
        bias_backward(dbias, dinp, partials)
        return
    OC = int(dbias.size)
    sums = RowSums(dinp, OC)
    _backward_partials(dinp, partials, inp, sums.N, OC, sums.chunk_rows, launch=sums.launch)
    sums.add_to(dbias, partials, like=dinp)


def _numpy_forward(out: np.ndarray, inp: np.ndarray) -> None:
    def elements(start: int, stop: int) -> None:
        x, y = inp[start:stop], out[start:stop]
        np.multiply(x, x, out=y)
        y *= -SCALE * CUBIC
        y -= SCALE
        y *= x
        np.exp(y, out=y)
        y += 1.0
        np.divide(x, y, out=y)

    for_blocks(elements, inp.size, BLOCK_ELEMENTS)


def _numpy_backward(dinp: np.ndarray, inp: np.ndarray, out: np.ndarray) -> None:
    def elements(start: int, stop: int) -> None:
        x, y, dy = inp[start:stop], out[start:stop], dinp[start:stop]
        # s = logistic(2u) = y / x saves the exp. Where both are 0, TINY makes it 1/2.
        s = y + 0.5 * TINY
        s /= x + TINY
        # gelu' = s + x s (1 - s) (2u)' = s + y (1 - s) SCALE (1 + 3 CUBIC x²)
        slope = x * x
        slope *= 3.0 * SCALE * CUBIC
        slope += SCALE
        slope *= y
        slope *= 1.0 - s
        slope += s
        dy *= slope

    for_blocks(elements, inp.size, BLOCK_ELEMENTS)
