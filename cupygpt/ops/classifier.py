"""Softmax cross-entropy over the real columns of the logits, loss and gradient in one pass."""

import numpy as np

from cupygpt.ops.host import for_blocks, on_host
from cupygpt.tensors import Array

BLOCK_ELEMENTS = 1 << 17


def classifier(losses: Array, logits: Array, targets: Array, V: int, dloss: float | None) -> None:
    """losses[n] += -log softmax(logits[n, :V])[targets[n]], and dlogits in place.

    Accumulated: losses (N,) float32, in nats; a target of -1 counts nothing and has no gradient.
    Updated in place: logits (N, Vp) floatX become their gradient times `dloss`; columns V and up
    get exactly 0, whatever they held. With `dloss` None (evaluation) they are left as scratch.
    After llm.c fused_classifier.cuh.
    """
    assert on_host(logits)
    N, Vp = logits.shape

    def rows(start: int, stop: int) -> None:
        block, block_targets = logits[start:stop, :V], targets[start:stop]
        index = np.arange(stop - start)
        counted = block_targets >= 0
        block -= block.max(axis=1, keepdims=True)
        target_logits = block[index, block_targets]
        np.exp(block, out=block)
        denominators = block.sum(axis=1)
        losses[start:stop] += np.where(counted, np.log(denominators) - target_logits, 0.0)
        if dloss is not None:
            block *= np.where(counted, dloss / denominators, 0.0)[:, None].astype(block.dtype)
            block[index, block_targets] -= np.where(counted, dloss, 0.0)
            logits[start:stop, V:] = 0.0

    for_blocks(rows, N, max(1, BLOCK_ELEMENTS // Vp))


def loss_mean(mean: Array, losses: Array, scale: float) -> None:
    """mean[0] = scale * sum(losses), in a fixed order.

    Written: mean (1,) float32. Read: losses (N,) float32.
    """
    assert on_host(mean)
    mean[0] = losses.sum(dtype=np.float64) * scale
