"""Logits and cross-entropy together: the last step of forward and the first of backward.

On a Hopper GPU in bfloat16, with few channels, the logits are not stored: they are computed once
for the losses, and once more for their gradient (cuda/lm_head.cu). Everywhere else they are
written by a product and turned into their gradient in place.
"""

from cupygpt.arrays import Array
from cupygpt.device.precision import Precision
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch, ceil_div, is_hopper, multiprocessors
from cupygpt.ops.classifier import classifier
from cupygpt.ops.linear import linear_forward

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

HEAD_PARTS = 8
"""Most shares of the vocabulary that softmax is computed in."""
HEAD_ROW_FLOATS = 2 + 2 * HEAD_PARTS
"""Statistics of one row of logits: two results, and two numbers for each share."""

_statistics = Kernel(
    "lm_head.cu",
    "head_statistics",
    "largest:f32* denominator:f32* target_logits:f32* inp:floatX* wte:floatX* targets:i32* N:i32 "
    "V:i32 Vp:i32",
    arch="sm_90a",
)
_losses = Kernel(
    "lm_head.cu",
    "head_losses",
    "losses:f32* lse:f32* largest:f32* denominator:f32* target_logits:f32* targets:i32* N:i32 "
    "num_parts:i32",
    arch="sm_90a",
)
_gradient = Kernel(
    "lm_head.cu",
    "head_gradient",
    "dlogits:floatX* lse:f32* inp:floatX* wte:floatX* targets:i32* N:i32 V:i32 Vp:i32 dloss:f32",
    arch="sm_90a",
)


def lm_head(
    losses: Array,
    dlogits: Array,
    inp: Array,
    wte: Array,
    targets: Array,
    V: int,
    dloss: float | None,
    statistics: Array,
    *,
    precision: Precision,
) -> None:
    """losses[n] += -log softmax((inp wteᵀ)[n, :V])[targets[n]], and dlogits.

    Accumulated: losses (N,) float32, in nats; a target of -1 counts nothing and has no gradient.
    Written: dlogits (N, Vp) floatX, the gradient of the logits times `dloss` (positive), 0 from
    column V on; with `dloss` None (evaluation) they are scratch. Read: inp (N, C), wte (Vp, C),
    targets (N,) int32. Scratch: statistics, flat float32, at least
    HEAD_ROW_FLOATS N elements. `precision` is the run's.
    """
    if not _is_fused(inp, precision):
        linear_forward(dlogits, inp, wte, None, precision=precision)
        classifier(losses, dlogits, targets, V, dloss)
        return
    N, Vp = len(inp), len(wte)
    parts, launch = _launch(inp, Vp, STATISTICS_GROUPS)
    lse, target_logits = statistics[:N], statistics[N : 2 * N]
    largest, denominator = statistics[2 * N :], statistics[(2 + parts) * N :]
    _statistics(largest, denominator, target_logits, inp, wte, targets, N, V, Vp, launch=launch)
    _losses(
        losses,
        lse,
        largest,
        denominator,
        target_logits,
        targets,
        N,
        parts,
        like=inp,
        launch=Launch(ceil_div(N, LOSS_THREADS), LOSS_THREADS, defines=launch.defines),
    )
    if dloss is None:
        return
    round_bytes = 2 * 64 * GRADIENT_GROUPS * (ROUND_COLUMNS + 8)
    _, launch = _launch(inp, Vp, GRADIENT_GROUPS, more_bytes=round_bytes)
    _gradient(dlogits, lse, inp, wte, targets, N, V, Vp, dloss, launch=launch)


def _launch(inp: Array, Vp: int, groups: int, more_bytes: int = 0) -> tuple[int, Launch]:
    """Into how many parts the vocabulary is cut so that every SM has a block, and the launch."""
    N, C = inp.shape
    row_blocks = ceil_div(N, 64 * groups)
    shares = multiprocessors(inp).count // row_blocks
    parts = max(1, min(HEAD_PARTS, shares, ceil_div(Vp, ROUND_COLUMNS)))
    return parts, Launch(
        grid=row_blocks * parts,
        block=128 * groups,
        shared_bytes=2 * STAGES * PAIR_COLUMNS * C + more_bytes,
        defines={"HS": C, "GROUPS": groups, "STAGES": STAGES},
    )


def _is_fused(inp: Array, precision: Precision) -> bool:
    return precision.rounds_storage and inp.shape[1] in FUSED_CHANNELS and is_hopper(inp)
