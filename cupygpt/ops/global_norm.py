"""The norm of all gradients together, for clipping and for the console."""

import math

import numpy as np

from cupygpt.ops.host import for_blocks, on_host
from cupygpt.tensors import Array

BLOCK_ELEMENTS = 1 << 16
MAX_PARTS = 1024


def global_norm(norm: Array, grads: Array, partials: Array) -> None:
    """norm[0] = sqrt(sum of squares of grads), in a fixed order.

    Written: norm (1,) float32. Read: grads (P,) floatX. Scratch: partials, flat float32, at least
    MAX_PARTS elements. After llm.c global_norm.cuh.
    """
    assert on_host(norm)
    size = max(BLOCK_ELEMENTS, -(-grads.size // MAX_PARTS))
    parts = partials[: -(-grads.size // size)]

    def squares(start: int, stop: int) -> None:
        block = grads[start:stop]
        parts[start // size] = np.dot(block, block)

    for_blocks(squares, grads.size, size)
    norm[0] = math.sqrt(parts.sum(dtype=np.float64))
