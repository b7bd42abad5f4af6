"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), with clipping of the gradients."""

import math
from collections.abc import Sequence

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.errors import KernelError
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import launch_per_pack, num_packs

EPSILON = 1e-8
BLOCK_ELEMENTS = 1 << 17
"""Parameters that a CPU thread updates at once (see device/cpu_threads.py)."""
MAX_CHANGES = 16
"""Changes between decay and no decay that one launch takes; the parameters of GPT-2 have 10."""
AFTER_ALL = 2**63 - 1
"""An index larger than any element's, for the changes that are not used."""

_CHANGES = np.dtype([("at", np.int64, MAX_CHANGES)], align=True)

_adamw = Kernel(
    "adamw.cu",
    "adamw",
    "params:floatX* master:f32*? m:f32* v:f32* grads:f32* grad_norm:f32* controls:f32* rng:u32*? "
    "rng_offset:i64 num_packs:i64 beta1:f32 one_minus_beta1:f32 beta2:f32 one_minus_beta2:f32 "
    "epsilon:f32 weight_decay:f32 grad_clip:f32 changes:DecayChanges",
    structs={"DecayChanges": _CHANGES},
)


def adamw(
    params: Array,
    m: Array,
    v: Array,
    grads: Array,
    grad_norm: Array,
    controls: Array,
    segments: Sequence[tuple[int, int, bool]],
    *,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_clip: float,
    master: Array | None = None,
    rng_state: Array | None = None,
    rng_offset: int = 0,
) -> None:
    """One update of all parameters: p -= lr (m̂ / (sqrt(v̂) + 1e-8) + wd p).

    Updated in place: params floatX (P,), m and v (P,) float32. Read: grads (P,) float32; grad_norm
    (1,) float32, the norm of all gradients; controls (3,) float32: learning rate, 1 - β1^t,
    1 - β2^t. If grad_norm is larger than grad_clip, gradients are scaled by grad_clip / grad_norm;
    with a grad_clip of 0 they never are. `segments` are (start, stop, decay) and cover the
    parameters.

    With bfloat16 params, `master` (P,) float32 is what the update changes, and params become its
    rounded copy. Without a master, params are rounded stochastically, by random numbers that follow
    from `rng_state` (4,) uint32 (see ops/dropout.py); KernelError if that is missing too.
    `rng_offset` is the index of params[0] in the flat vector of the whole model: a rank that
    updates only a part of it rounds each parameter as one process would. After llm.c adamw.cuh.
    """
    if on_host(params):
        assert master is None, "float32 parameters are their own master"
        _numpy_adamw(
            params,
            m,
            v,
            grads,
            grad_norm,
            controls,
            segments,
            beta1,
            beta2,
            weight_decay,
            grad_clip,
        )
        return
    if params.itemsize == 2 and master is None and rng_state is None:
        raise KernelError("adamw: bfloat16 parameters need master weights or rng_state.")
    packs = num_packs(params)
    arrays = (params, master, m, v, grads, grad_norm, controls, rng_state)
    betas = (beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    settings = (*betas, EPSILON, weight_decay, grad_clip)
    launch = launch_per_pack(packs, {"MAX_CHANGES": MAX_CHANGES})
    _adamw(*arrays, rng_offset, packs, *settings, _decay_changes(segments), launch=launch)


def _decay_changes(segments: Sequence[tuple[int, int, bool]]) -> np.ndarray:
    """The struct DecayChanges (0-d): where decay begins, ends, begins again, ..."""
    starts: list[int] = []
    for start, _, decay in segments:
        if decay != len(starts) % 2:
            starts.append(start)
    if len(starts) > MAX_CHANGES or any(start % 8 for start in starts):
        raise KernelError(
            f"weight decay changes at {starts}: the kernel takes {MAX_CHANGES} changes, "
            f"each at a multiple of 8."
        )
    changes = np.full((), AFTER_ALL, _CHANGES)
    changes["at"][: len(starts)] = starts
    return changes


def _numpy_adamw(
    params: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    grads: np.ndarray,
    grad_norm: np.ndarray,
    controls: np.ndarray,
    segments: Sequence[tuple[int, int, bool]],
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_clip: float,
) -> None:
    lr, correction1, correction2 = (float(x) for x in controls)
    clip = grad_clip / float(grad_norm[0]) if 0.0 < grad_clip < grad_norm[0] else 1.0

    root = math.sqrt(correction2)  # m̂ / (sqrt(v̂) + ε) = root / correction1 m / (sqrt(v) + ε root)
    decayed = [(start, stop) for start, stop, decay in segments if decay and weight_decay]
    keep = 1.0 - lr * weight_decay

    def update(start: int, stop: int) -> None:
        p, g = params[start:stop], grads[start:stop]
        m_block, v_block = m[start:stop], v[start:stop]
        step = g * (clip * (1.0 - beta1))
        m_block *= beta1
        m_block += step
        np.multiply(g, clip, out=step)
        np.multiply(step, step, out=step)
        step *= 1.0 - beta2
        v_block *= beta2
        v_block += step
        np.sqrt(v_block, out=step)
        step += EPSILON * root
        np.divide(m_block, step, out=step)
        step *= lr * root / correction1
        for decay_start, decay_stop in decayed:
            p[max(decay_start - start, 0) : max(decay_stop - start, 0)] *= keep
        p -= step

    for_blocks(update, len(params), BLOCK_ELEMENTS)
