"""Softmax cross-entropy over the real columns of the logits, loss and gradient in one kernel."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import (
    PACK_BYTES,
    WARP,
    Launch,
    Multiprocessors,
    ceil_div,
    multiprocessors,
    pack_size,
)

BLOCK_ELEMENTS = 1 << 17
"""Logits that a CPU thread handles at once. Larger blocks mean fewer calls of NumPy; one of this
size (512 KB) still stays in the second-level cache from the first pass over it to the last."""

MAX_THREADS = {4: 1024, 8: 768}
"""Most threads of a block, by the elements of a pack: two such blocks on a multiprocessor leave
each thread the registers that it needs."""
RESIDENT_THREADS, RESIDENT_BLOCKS = 2048, 16
"""Threads and blocks that a multiprocessor is taken to hold at once. It holds 2048 threads on A100,
H100 and B200, 1536 on RTX 30, 40 and 50, 1024 on Turing: there the grid is larger than what is
resident."""
RESERVED_BYTES = 2 << 10
"""Shared memory of a block that is not for its row: the system's, and that of the reductions."""

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
    if dloss is None:
        launch = loss_launch(N, Vp, pack_size(logits))
        _classifier_loss(losses, logits, targets, V, Vp, launch=launch)
        return
    launch = gradient_launch(N, Vp, pack_size(logits), multiprocessors(logits))
    num_kept = launch.shared_bytes // PACK_BYTES
    _classifier(losses, logits, targets, N, V, Vp, num_kept, dloss, launch=launch)


def loss_launch(N: int, Vp: int, per_pack: int) -> Launch:
    """The launch of classifier_loss: a block for each row. `per_pack` elements make a pack."""
    max_threads = MAX_THREADS[per_pack]
    threads = min(max_threads, ceil_div(Vp, per_pack * WARP) * WARP)
    return Launch(N, threads, defines={"MAX_THREADS": max_threads})


def gradient_launch(N: int, Vp: int, per_pack: int, processors: Multiprocessors) -> Launch:
    """The launch of classifier: as many blocks as are resident, each with a row in shared memory.

    A block takes half the shared memory of a multiprocessor or less; if a row needs more than
    that, the block takes all that it can get. `per_pack` elements make a pack.
    """
    max_threads = MAX_THREADS[per_pack]
    packs = ceil_div(Vp, per_pack)
    threads = min(max_threads, ceil_div(packs, WARP) * WARP)
    row_bytes = processors.shared_bytes // 2 - RESERVED_BYTES
    if packs * PACK_BYTES > row_bytes:
        row_bytes = processors.shared_bytes_of_block - RESERVED_BYTES
    kept_bytes = min(packs, row_bytes // PACK_BYTES) * PACK_BYTES
    by_memory = processors.shared_bytes // (kept_bytes + RESERVED_BYTES)
    resident = processors.count * min(RESIDENT_THREADS // threads, RESIDENT_BLOCKS, by_memory)
    return Launch(
        min(N, resident), threads, shared_bytes=kept_bytes, defines={"MAX_THREADS": max_threads}
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
