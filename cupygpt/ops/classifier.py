"""Softmax cross-entropy over the real columns of the logits, loss and gradient in one pass."""

import numpy as np

from cupygpt.kernels import Kernel, ceil_div, num_lanes
from cupygpt.ops.host import for_blocks, on_host
from cupygpt.tensors import Array

BLOCK_ELEMENTS = 1 << 17
MAX_THREADS = 1024
WARP = 32

_classifier = Kernel(
    "classifier.cu",
    "classifier",
    "losses:f32* logits:floatX* targets:i32* V:i32 Vp:i32 dloss:f32",
)
_classifier_loss = Kernel(
    "classifier.cu", "classifier_loss", "losses:f32* logits:floatX* targets:i32* V:i32 Vp:i32"
)
_loss_mean = Kernel("loss_mean.cu", "loss_mean", "mean:f32* losses:f32* N:i32 scale:f32")


def classifier(losses: Array, logits: Array, targets: Array, V: int, dloss: float | None) -> None:
    """losses[n] += -log softmax(logits[n, :V])[targets[n]], and dlogits in place.

    Accumulated: losses (N,) float32, in nats; a target of -1 counts nothing and has no gradient.
    Updated in place: logits (N, Vp) floatX become their gradient times `dloss`; columns V and up
    get exactly 0, whatever they held. With `dloss` None (evaluation) they are left as scratch.
    After llm.c fused_classifier.cuh.
    """
    if on_host(logits):
        _numpy_classifier(losses, logits, targets, V, dloss)
        return
    N, Vp = logits.shape
    block = min(MAX_THREADS, ceil_div(Vp, num_lanes(logits) * WARP) * WARP)
    if dloss is None:
        _classifier_loss(losses, logits, targets, V, Vp, grid=N, block=block)
    else:
        _classifier(losses, logits, targets, V, Vp, dloss, grid=N, block=block)


def loss_mean(mean: Array, losses: Array, scale: float) -> None:
    """mean[0] = scale * sum(losses), in a fixed order.

    Written: mean (1,) float32. Read: losses (N,) float32.
    """
    if on_host(mean):
        mean[0] = losses.sum(dtype=np.float64) * scale
        return
    _loss_mean(mean, losses, len(losses), scale, grid=1, block=MAX_THREADS)


def _numpy_classifier(
    losses: np.ndarray, logits: np.ndarray, targets: np.ndarray, V: int, dloss: float | None
) -> None:
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
