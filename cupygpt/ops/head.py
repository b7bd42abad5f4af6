"""The output head: logits = lnf wteᵀ, softmax cross-entropy, and both gradients of the product.

For few channels the logits (N, Vp) take longer to move than to compute. Kernels of its own then
write them once and read them twice, where separate products and a classifier move them six times.
"""

from typing import NamedTuple

from cupygpt.kernels import Kernel, ceil_div, num_packs
from cupygpt.ops.classifier import classifier
from cupygpt.ops.host import on_host
from cupygpt.ops.linear import linear_backward, linear_forward
from cupygpt.tensors import Array

MAX_FUSED_CHANNELS = 128
"""Above it arithmetic decides over the time, and the library's products are faster than ours."""

CHANNEL_MULTIPLE = 32
"""Contraction of one stage of the fused kernels' pipelines."""

TILE = 128
"""Rows, and columns, of logits that a block of the fused kernels has in hand at once."""

THREADS = 128
STAGES = 3
"""Stages of the gradients' pipelines: as many as leave 99 KiB, all that consumer GPUs have."""

BUSY_BLOCKS = 256
"""Blocks that keep a large GPU busy: 132 SMs hold two each."""

MAX_PARTS = 4
"""Sums of dlnf over shares of the vocabulary, which `sums` of 4 N C elements can hold."""

_logits = Kernel(
    "head_forward.cu",
    "head_logits",
    "logits:f32* statistics:f32* lnf:f32* wte:f32* N:i32 V:i32 Vp:i32 splits:i32",
)
_softmax = Kernel(
    "head_forward.cu",
    "head_softmax",
    "losses:f32* lse:f32* statistics:f32* lnf:f32* wte:f32* targets:i32* N:i32 parts:i32",
)
_dlnf = Kernel(
    "head_backward.cu",
    "head_dlnf",
    "sums:f32* logits:f32* wte:f32* lse:f32* targets:i32* N:i32 V:i32 Vp:i32 parts:i32",
)
_dlnf_sum = Kernel(
    "head_backward.cu", "head_dlnf_sum", "dlnf:f32* sums:f32* dloss:f32 num_packs:i64 parts:i32"
)
_dwte = Kernel(
    "head_backward.cu",
    "head_dwte",
    "dwte:f32* logits:f32* lnf:f32* lse:f32* targets:i32* dloss:f32 N:i32 V:i32 Vp:i32",
)


class HeadGradients(NamedTuple):
    """What the head computes beside the losses."""

    dlnf: Array
    """Written: (N, C) floatX."""
    dwte: Array
    """Accumulated: (Vp, C) floatX."""
    dloss: float
    """Gradient of each loss."""
    sums: Array
    """Scratch: flat floatX, at least 4 N C elements."""


def head(
    losses: Array,
    gradients: HeadGradients | None,
    lnf: Array,
    wte: Array,
    targets: Array,
    logits: Array,
    statistics: Array,
    V: int,
    *,
    tf32: bool = False,
) -> None:
    """losses[n] += -log softmax(lnf[n] @ wte[:V].T)[targets[n]], and with `gradients` those.

    Accumulated: losses (N,) float32, in nats; a target of -1 counts nothing and has no gradient.
    Written and accumulated: see HeadGradients; rows V and up of dwte get exactly 0, whatever wte
    holds there. Read: lnf (N, C), wte (Vp, C) floatX; targets (N,) int32. Scratch: logits (N, Vp)
    floatX; statistics, flat floatX, at least N C elements. `tf32` lets a GPU round float32 operands
    to TF32; the CPU ignores it.
    """
    if is_fused(lnf, tf32=tf32):
        _fused_head(losses, gradients, lnf, wte, targets, logits, statistics, V)
        return
    linear_forward(logits, lnf, wte, None, tf32=tf32)
    classifier(losses, logits, targets, V, gradients.dloss if gradients else None)
    if gradients is not None:
        linear_backward(
            gradients.dlnf, gradients.dwte, None, logits, lnf, wte, gradients.sums, tf32=tf32
        )


def is_fused(lnf: Array, *, tf32: bool) -> bool:
    """Whether the head of these activations (…, C) runs in kernels of its own."""
    C = lnf.shape[-1]
    fits = C <= MAX_FUSED_CHANNELS and C % CHANNEL_MULTIPLE == 0
    return tf32 and fits and lnf.itemsize == 4 and not on_host(lnf)


def _fused_head(
    losses: Array,
    gradients: HeadGradients | None,
    lnf: Array,
    wte: Array,
    targets: Array,
    logits: Array,
    statistics: Array,
    V: int,
) -> None:
    (N, C), Vp = lnf.shape, len(wte)
    row_blocks = ceil_div(N, TILE)
    # Each split leaves four floats a row, and the row's log-sum-exp is one more.
    splits = min(ceil_div(BUSY_BLOCKS, row_blocks), Vp // TILE, (C - 1) // 4)
    parts, lse = statistics[: 4 * splits * N], statistics[4 * splits * N :][:N]
    forward = {"CHANNELS": C, "STORE_LOGITS": int(gradients is not None)}
    _logits(
        logits, parts, lnf, wte, N, V, Vp, splits,
        grid=row_blocks * splits, block=THREADS, defines=forward,
        shared_mem=4 * TILE * (C + 2 * CHANNEL_MULTIPLE),
    )  # fmt: skip
    _softmax(
        losses, lse, parts, lnf, wte, targets, N, 2 * splits,
        grid=ceil_div(N, THREADS // 32), block=THREADS, defines=forward,
    )  # fmt: skip
    if gradients is not None:
        _fused_gradients(gradients, lnf, wte, targets, logits, lse, V)


def _fused_gradients(
    gradients: HeadGradients,
    lnf: Array,
    wte: Array,
    targets: Array,
    logits: Array,
    lse: Array,
    V: int,
) -> None:
    (N, C), Vp = lnf.shape, len(wte)
    dlnf, dwte, dloss, sums = gradients
    row_blocks, packs = ceil_div(N, TILE), num_packs(dlnf)
    parts = min(ceil_div(BUSY_BLOCKS, row_blocks), MAX_PARTS)
    defines = {"CHANNELS": C, "COLUMN_WARPS": 2 if C == MAX_FUSED_CHANNELS else 1, "STAGES": STAGES}
    stage_bytes = 4 * CHANNEL_MULTIPLE * (TILE + C)
    # Beside the stages lie the targets of the block's rows.
    _dlnf(
        sums, logits, wte, lse, targets, N, V, Vp, parts,
        grid=row_blocks * parts, block=THREADS, defines=defines,
        shared_mem=STAGES * stage_bytes + 4 * TILE,
    )  # fmt: skip
    _dlnf_sum(
        dlnf, sums, dloss, packs, parts,
        grid=ceil_div(packs, THREADS), block=THREADS, defines=defines,
    )  # fmt: skip
    # Beside each row of a stage lie its log-sum-exp and its target.
    _dwte(
        dwte, logits, lnf, lse, targets, dloss, N, V, Vp,
        grid=Vp // TILE, block=THREADS, defines=defines,
        shared_mem=STAGES * (stage_bytes + 8 * CHANNEL_MULTIPLE),
    )  # fmt: skip
