"""Softmax cross-entropy over the real columns of the logits, loss and gradient in one pass."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import PACK_BYTES, Launch, ceil_div, multiprocessors, pack_size

BLOCK_ELEMENTS = 1 << 17
MAX_THREADS = {4: 1024, 8: 768}
"""Of a block, by the elements of a pack; as in classifier.cu."""
WARP = 32
THREADS, MAX_BLOCKS = 2048, 16
"""Threads and blocks that a multiprocessor of every GPU but a few can hold at once."""
BLOCK_RESERVED_BYTES = 2 << 10
"""Shared memory of a block beside its row: the system's, and for reductions."""

_classifier = Kernel(
    "classifier.cu",
    "classifier",
    "losses:f32* logits:floatX* targets:i32* N:i32 V:i32 Vp:i32 num_kept:i32 dloss:f32",
)
_classifier_loss = Kernel(
    "classifier.cu", "classifier_loss", "losses:f32* logits:floatX* targets:i32* V:i32 Vp:i32"
)


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
    lanes = pack_size(logits)
    block = min(MAX_THREADS[lanes], ceil_div(Vp, lanes * WARP) * WARP)
    if dloss is None:
        _classifier_loss(losses, logits, targets, V, Vp, launch=Launch(N, block))
        return
    processors, packs = multiprocessors(logits), ceil_div(Vp, lanes)
    # As many rows at once as there is room for, two at most where a row takes many threads.
    share = processors.shared_bytes // 2 - BLOCK_RESERVED_BYTES
    if packs * PACK_BYTES > share:
        share = processors.shared_bytes_of_block - BLOCK_RESERVED_BYTES
    kept = min(packs, share // PACK_BYTES)
    block_bytes = kept * PACK_BYTES + BLOCK_RESERVED_BYTES
    resident = min(THREADS // block, MAX_BLOCKS, processors.shared_bytes // block_bytes)
    _classifier(
        losses,
        logits,
        targets,
        N,
        V,
        Vp,
        kept,
        dloss,
        launch=Launch(min(N, processors.count * resident), block, shared_bytes=kept * PACK_BYTES),
    )


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
