"""The norm of all gradients together, for clipping and for the console."""

import math

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch, ceil_div, num_packs

BLOCK_ELEMENTS = 1 << 16
MAX_PARTS = 1024
THREADS = 256
MIN_PACKS_PER_THREAD = 4
"""Below this a block would cost more than it does."""

_squares = Kernel("global_norm.cu", "squares", "partials:f32* grads:f32* num_packs:i64")
_norm = Kernel("global_norm.cu", "norm_of_squares", "norm:f32* partials:f32* num_parts:i32")


def global_norm(norm: Array, grads: Array, partials: Array) -> None:
    """norm[0] = sqrt(sum of squares of grads), in a fixed order.

    Written: norm (1,) float32. Read: grads (P,) float32. Scratch: partials, flat float32, at least
    MAX_PARTS elements. After llm.c global_norm.cuh.
    """
    if on_host(norm):
        _numpy_norm(norm, grads, partials)
        return
    packs = num_packs(grads)
    num_parts = min(MAX_PARTS, ceil_div(packs, THREADS * MIN_PACKS_PER_THREAD))
    _squares(partials, grads, packs, launch=Launch(num_parts, THREADS))
    _norm(norm, partials, num_parts, launch=Launch(1, MAX_PARTS))


def _numpy_norm(norm: np.ndarray, grads: np.ndarray, partials: np.ndarray) -> None:
    size = max(BLOCK_ELEMENTS, -(-grads.size // MAX_PARTS))
    parts = partials[: -(-grads.size // size)]

    def squares(start: int, stop: int) -> None:
        block = grads[start:stop]
        parts[start // size] = np.dot(block, block)

    for_blocks(squares, grads.size, size)
    norm[0] = math.sqrt(parts.sum(dtype=np.float64))
