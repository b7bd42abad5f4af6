"""The norm of all gradients together, for clipping and for the console."""

import math

import numpy as np

from cupygpt.ops.host import for_blocks, on_host
from cupygpt.tensors import Array

BLOCK_ELEMENTS = 1 << 16


def global_norm(norm: Array, grads: Array) -> None:
    """norm[0] = sqrt(sum of squares of grads), in a fixed order.

    Written: norm (1,) float32. Read: grads (P,) floatX. After llm.c global_norm.cuh.
    """
    assert on_host(norm)
    parts = np.empty(-(-grads.size // BLOCK_ELEMENTS))

    def squares(start: int, stop: int) -> None:
        block = grads[start:stop]
        parts[start // BLOCK_ELEMENTS] = np.einsum("n,n->", block, block)

    for_blocks(squares, grads.size, BLOCK_ELEMENTS)
    norm[0] = math.sqrt(parts.sum())
