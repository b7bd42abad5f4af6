"""Logits and cross-entropy together: the last step of forward and the first of backward.

On a Hopper GPU in bfloat16, with few channels, the logits are not stored: they are computed once
for the losses, and once more for their gradient (cuda/head_wgmma.cu). Everywhere else they are
written by a product and turned into their gradient in place.
"""

from typing import Any

from cupygpt.kernels import Kernel, ceil_div, is_hopper, multiprocessors
from cupygpt.ops.classifier import classifier
from cupygpt.ops.linear import linear_forward
from cupygpt.tensors import HEAD_PARTS, Array

FUSED_CHANNELS = (64, 128)
"""Where computing the logits again costs less than writing and reading them."""

STATISTICS_GROUPS, GRADIENT_GROUPS = 4, 3
"""Warpgroups of a block, 64 rows each: as many as registers allow."""

STAGES = 3
"""Pairs of tiles in shared memory, each of PAIR_COLUMNS words of the vocabulary."""

PAIR_COLUMNS = 128
ROUND_COLUMNS = 256
"""Columns that a block goes through before it writes them; the vocabulary is shared by these."""

LOSS_THREADS = 256

_statistics = Kernel(
    "head_wgmma.cu",
    "head_statistics",
    "largest:f32* denominator:f32* target_logits:f32* inp:floatX* wte:floatX* targets:i32* N:i32 "
    "V:i32 Vp:i32",
    arch="sm_90a",
)
_losses = Kernel(
    "head_wgmma.cu",
    "head_losses",
    "losses:f32* lse:f32* largest:f32* denominator:f32* target_logits:f32* targets:i32* N:i32 "
    "num_parts:i32",
    arch="sm_90a",
)
_gradient = Kernel(
    "head_wgmma.cu",
    "head_gradient",
    "dlogits:floatX* lse:f32* inp:floatX* wte:floatX* targets:i32* N:i32 V:i32 Vp:i32 dloss:f32",
    arch="sm_90a",
)


def head(
    losses: Array,
    dlogits: Array,
    inp: Array,
    wte: Array,
    targets: Array,
    V: int,
    dloss: float | None,
    statistics: Array,
    *,
    tf32: bool = False,
) -> None:
    """losses[n] += -log softmax((inp wteᵀ)[n, :V])[targets[n]], and dlogits.

    Accumulated: losses (N,) float32, in nats; a target of -1 counts nothing and has no gradient.
    Written: dlogits (N, Vp) floatX, the gradient of the logits times `dloss` (positive), 0 from
    column V on; with `dloss` None (evaluation) they are scratch. Read: inp (N, C), wte (Vp, C),
    targets (N,) int32. Scratch: statistics, flat float32, at least
    HEAD_ROW_FLOATS N elements. `tf32` as in
    linear_forward.
    """
    if not _is_fused(inp):
        linear_forward(dlogits, inp, wte, None, tf32=tf32)
        classifier(losses, dlogits, targets, V, dloss)
        return
    N, Vp = len(inp), len(wte)
    parts, launch = _launch(inp, Vp, STATISTICS_GROUPS)
    lse, target_logits = statistics[:N], statistics[N : 2 * N]
    largest, denominator = statistics[2 * N :], statistics[(2 + parts) * N :]
    _statistics(largest, denominator, target_logits, inp, wte, targets, N, V, Vp, **launch)
    _losses(
        losses, lse, largest, denominator, target_logits, targets, N, parts, like=inp,
        grid=ceil_div(N, LOSS_THREADS), block=LOSS_THREADS, defines=launch["defines"],
    )  # fmt: skip
    if dloss is None:
        return
    _, launch = _launch(inp, Vp, GRADIENT_GROUPS)
    launch["shared_mem"] += 2 * 64 * GRADIENT_GROUPS * (ROUND_COLUMNS + 8)
    _gradient(dlogits, lse, inp, wte, targets, N, V, Vp, dloss, **launch)


def _launch(inp: Array, Vp: int, groups: int) -> tuple[int, dict[str, Any]]:
    """Into how many parts the vocabulary is cut so that every SM has a block, and the launch."""
    N, C = inp.shape
    row_blocks = ceil_div(N, 64 * groups)
    shares = multiprocessors(inp).count // row_blocks
    parts = max(1, min(HEAD_PARTS, shares, ceil_div(Vp, ROUND_COLUMNS)))
    return parts, {
        "grid": row_blocks * parts,
        "block": 128 * groups,
        "shared_mem": 2 * STAGES * PAIR_COLUMNS * C,
        "defines": {"HS": C, "GROUPS": groups, "STAGES": STAGES},
    }


def _is_fused(inp: Array) -> bool:
    return inp.itemsize == 2 and inp.shape[1] in FUSED_CHANNELS and is_hopper(inp)
