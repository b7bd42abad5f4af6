"""The norm of all gradients, for clipping and for the console."""

import math

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch, ceil_div, num_packs

BLOCK_ELEMENTS = 1 << 16
"""Gradients per np.dot on the CPU, at least; there is one partial sum for each."""
MAX_PARTIALS = 1024
THREADS = 256
MIN_PACKS_PER_THREAD = 4
"""With less work than this, a further block takes more time than it saves."""

_partials = Kernel(
    "global_norm.cu", "global_norm_partials", "partials:f32* grads:f32* num_packs:i64"
)
_final = Kernel("global_norm.cu", "global_norm_final", "norm:f32* partials:f32* num_partials:i32")


def global_norm(norm: Array, grads: Array, partials: Array) -> None:
    """norm[0] = sqrt(sum of squares of grads), in a fixed order.

    Written: norm (1,) float32. Read: grads (P,) float32. Scratch: partials, flat float32, at least
    MAX_PARTIALS elements. After llm.c global_norm.cuh.
    """
    if on_host(norm):
        _numpy_norm(norm, grads, partials)
        return
    packs = num_packs(grads)
    blocks = min(MAX_PARTIALS, ceil_div(packs, THREADS * MIN_PACKS_PER_THREAD))
    _partials(partials, grads, packs, launch=Launch(blocks, THREADS))
    _final(norm, partials, blocks, launch=Launch(1, MAX_PARTIALS))


def _numpy_norm(norm: np.ndarray, grads: np.ndarray, partials: np.ndarray) -> None:
    size = max(BLOCK_ELEMENTS, ceil_div(grads.size, MAX_PARTIALS))
    sums = partials[: ceil_div(grads.size, size)]

    def square_sum(start: int, stop: int) -> None:
        block = grads[start:stop]
        sums[start // size] = np.dot(block, block)

    for_blocks(square_sum, grads.size, size)
    norm[0] = math.sqrt(sums.sum(dtype=np.float64))
