"""AdamW with the clipping factor applied on the fly (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

import math
from collections.abc import Sequence

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.errors import KernelError
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch, ceil_div, num_packs

EPSILON = 1e-8
BLOCK_ELEMENTS = 1 << 17
THREADS = 256
MAX_TOGGLES = 16
"""Changes between decay and no decay that one launch takes; GPT-2's table has 10."""
NEVER = 2**63 - 1

_adamw = Kernel(
    "adamw.cu",
    "adamw",
    "params:floatX* master:f32*? m:f32* v:f32* grads:f32* norm:f32* controls:f32* rng:u32*? "
    "origin:i64 num_packs:i64 beta1:f32 one_minus_beta1:f32 beta2:f32 one_minus_beta2:f32 "
    "weight_decay:f32 grad_clip:f32 " + " ".join(f"toggle{i}:i64" for i in range(MAX_TOGGLES)),
)


def adamw(
    params: Array,
    m: Array,
    v: Array,
    grads: Array,
    norm: Array,
    controls: Array,
    segments: Sequence[tuple[int, int, bool]],
    *,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_clip: float,
    master: Array | None = None,
    rng_state: Array | None = None,
    first: int = 0,
) -> None:
    """One update of all parameters: p -= lr (m̂ / (sqrt(v̂) + 1e-8) + wd p).

    Updated in place: params floatX (P,), m and v (P,) float32. Read: grads (P,) float32; norm (1,)
    float32, the global norm of the gradients; controls (3,) float32: learning rate, 1 - β1^t,
    1 - β2^t. Gradients are scaled by grad_clip / norm where norm is larger; grad_clip 0 means no
    clipping. `segments` are (start, stop, decay) runs that cover the parameters.

    bfloat16 params go with `master` (P,) float32, which is updated in their place and of which they
    are the rounded copy. Without it they are rounded stochastically, by numbers drawn from
    `rng_state` (4,) uint32 (see ops/dropout.py); KernelError if that is missing too. `first` is
    where params begin in the flat vector of all, so that a rank that updates a part of it rounds
    as one that updates all. After llm.c adamw.cuh.
    """
    if on_host(params):
        assert master is None, "float32 parameters are their own master"
        _numpy_adamw(
            params, m, v, grads, norm, controls, segments, beta1, beta2, weight_decay, grad_clip
        )
        return
    if params.itemsize == 2 and master is None and rng_state is None:
        raise KernelError("adamw: bfloat16 parameters need master weights or rng_state.")
    packs = num_packs(params)
    _adamw(
        params,
        master,
        m,
        v,
        grads,
        norm,
        controls,
        rng_state,
        first,
        packs,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        weight_decay,
        grad_clip,
        *_decay_toggles(segments),
        launch=Launch(ceil_div(packs, THREADS), THREADS),
    )


def _decay_toggles(segments: Sequence[tuple[int, int, bool]]) -> list[int]:
    """Where decay begins, ends, begins again, …; filled up to MAX_TOGGLES with NEVER."""
    toggles: list[int] = []
    for start, _, decay in segments:
        if decay != len(toggles) % 2:
            toggles.append(start)
    if len(toggles) > MAX_TOGGLES or any(start % 8 for start in toggles):
        raise KernelError(
            f"weight decay changes at {toggles}: the kernel takes {MAX_TOGGLES} places, "
            f"each a multiple of 8."
        )
    return toggles + [NEVER] * (MAX_TOGGLES - len(toggles))


def _numpy_adamw(
    params: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    grads: np.ndarray,
    norm: np.ndarray,
    controls: np.ndarray,
    segments: Sequence[tuple[int, int, bool]],
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_clip: float,
) -> None:
    rate, correction1, correction2 = (float(x) for x in controls)
    clip = grad_clip / float(norm[0]) if 0.0 < grad_clip < norm[0] else 1.0

    root = math.sqrt(correction2)  # m̂ / (sqrt(v̂) + ε) = root / correction1 m / (sqrt(v) + ε root)
    decayed = [(start, stop) for start, stop, decays in segments if decays and weight_decay]
    kept = 1.0 - rate * weight_decay

    def update(start: int, stop: int) -> None:
        p, g = params[start:stop], grads[start:stop]
        first, second = m[start:stop], v[start:stop]
        step = g * (clip * (1.0 - beta1))
        first *= beta1
        first += step
        np.multiply(g, clip, out=step)
        np.multiply(step, step, out=step)
        step *= 1.0 - beta2
        second *= beta2
        second += step
        np.sqrt(second, out=step)
        step += EPSILON * root
        np.divide(first, step, out=step)
        step *= rate * root / correction1
        for first_decayed, stop_decayed in decayed:
            p[max(first_decayed - start, 0) : max(stop_decayed - start, 0)] *= kept
        p -= step

    for_blocks(update, len(params), BLOCK_ELEMENTS)
