"""Logits and cross-entropy together: the last step of forward and the first of backward.

On a Hopper GPU in bfloat16, with few channels, the logits are not stored: cuda/lm_head.cu computes
them once for the losses and once more for their gradient. In all other cases a matmul writes the
logits, and ops/classifier.py turns them into their gradient in place.
"""

from cupygpt.arrays import Array
from cupygpt.device.precision import Precision
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import (
    WARPGROUP,
    WARPGROUP_ROWS,
    Launch,
    ceil_div,
    is_hopper,
    multiprocessors,
)
from cupygpt.ops.classifier import classifier
from cupygpt.ops.linear import linear_forward

FUSED_CHANNELS = (64, 128)
"""Numbers of channels for which computing the logits twice costs less than storing them."""

STATISTICS_GROUPS, GRADIENT_GROUPS = 4, 3
"""Warpgroups of a block in the two kernels with wgmma: as many as registers allow."""

STAGES = 3
"""Pairs of tiles that shared memory holds."""
PAIR_COLUMNS = 128
"""Tokens of a pair of tiles."""
ROUND_COLUMNS = 256
"""Columns of the logits' gradient that are gathered before they are written. A vocab split is a
whole number of rounds."""
ROUND_PITCH = ROUND_COLUMNS + 8
"""Elements from row to row where they are gathered: the 8 rows x 4 words that a warp stores at once
lie in the 32 different banks of shared memory."""

LOSS_THREADS = 256

MAX_VOCAB_SPLITS = 8
STATISTICS_PER_ROW = 2 + 2 * MAX_VOCAB_SPLITS
"""Floats of scratch for one row of logits: log2 of the sum of exp(logit), the target's logit, and
for each vocab split its shift, which is its largest logit times log2(e), and its denominator."""

_statistics = Kernel(
    "lm_head.cu",
    "lm_head_statistics",
    "shifts:f32* denominators:f32* target_logits:f32* inp:floatX* wte:floatX* targets:i32* N:i32 "
    "V:i32 Vp:i32",
    arch="sm_90a",
)
_losses = Kernel(
    "lm_head.cu",
    "lm_head_losses",
    "losses:f32* log2_sums:f32* shifts:f32* denominators:f32* target_logits:f32* targets:i32* "
    "N:i32 num_splits:i32",
    arch="sm_90a",
)
_gradient = Kernel(
    "lm_head.cu",
    "lm_head_gradient",
    "dlogits:floatX* log2_sums:f32* inp:floatX* wte:floatX* targets:i32* N:i32 V:i32 Vp:i32 "
    "dloss:f32",
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
    targets (N,) int32. Scratch: statistics, flat float32, at least STATISTICS_PER_ROW N elements.
    `precision` is the run's.
    """
    if not _is_fused(inp, precision):
        linear_forward(dlogits, inp, wte, None, precision=precision)
        classifier(losses, dlogits, targets, V, dloss)
        return
    N, Vp = len(inp), len(wte)
    num_splits, launch = fused_launch(inp, Vp, STATISTICS_GROUPS)
    log2_sums, target_logits = statistics[:N], statistics[N : 2 * N]
    shifts, denominators = statistics[2 * N :], statistics[(2 + num_splits) * N :]
    _statistics(shifts, denominators, target_logits, inp, wte, targets, N, V, Vp, launch=launch)
    _losses(
        losses,
        log2_sums,
        shifts,
        denominators,
        target_logits,
        targets,
        N,
        num_splits,
        like=inp,
        launch=Launch(ceil_div(N, LOSS_THREADS), LOSS_THREADS, defines=launch.defines),
    )
    if dloss is None:
        return
    _, launch = fused_launch(inp, Vp, GRADIENT_GROUPS, gathers=True)
    _gradient(dlogits, log2_sums, inp, wte, targets, N, V, Vp, dloss, launch=launch)


def fused_launch(inp: Array, Vp: int, groups: int, *, gathers: bool = False) -> tuple[int, Launch]:
    """The number of vocab splits, and the launch.

    There are as many splits as leave each block a multiprocessor, at most MAX_VOCAB_SPLITS; with
    many rows there is one. With `gathers`, each row of a block has room for a round of its columns
    in shared memory.
    """
    N, C = inp.shape
    row_blocks = ceil_div(N, WARPGROUP_ROWS * groups)
    blocks_per_row = multiprocessors(inp).count // row_blocks
    num_splits = max(1, min(MAX_VOCAB_SPLITS, blocks_per_row, ceil_div(Vp, ROUND_COLUMNS)))
    tile_elements = STAGES * PAIR_COLUMNS * C
    gathered_elements = WARPGROUP_ROWS * groups * ROUND_PITCH if gathers else 0
    launch = Launch(
        grid=row_blocks * num_splits,
        block=WARPGROUP * groups,
        shared_bytes=int(inp.itemsize) * (tile_elements + gathered_elements),
        defines={
            "C": C,
            "GROUPS": groups,
            "STAGES": STAGES,
            "PAIR_COLUMNS": PAIR_COLUMNS,
            "ROUND_COLUMNS": ROUND_COLUMNS,
            "ROUND_PITCH": ROUND_PITCH,
        },
    )
    return num_splits, launch


def _is_fused(inp: Array, precision: Precision) -> bool:
    return precision.rounds_storage and inp.shape[1] in FUSED_CHANNELS and is_hopper(inp)
