"""Drawing the next token: temperature, top-k and nucleus (Holtzman et al. 2020, arXiv:1904.09751)."""

import numpy as np

from cupygpt.kernels import Kernel, ceil_div
from cupygpt.ops.host import on_host
from cupygpt.tensors import Array

MAX_THREADS = 1024
WARP = 32

_sample = Kernel(
    "sampling.cu",
    "sample_token",
    "token:i32* logits:floatX* uniform:f32* V:i32 temperature:f32 top_k:i32 top_p:f32",
)


def sample_token(
    token: Array,
    logits: Array,
    V: int,
    uniform: Array,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    """token[0] = an id below V drawn from softmax(logits / temperature).

    Written: token (1,) int32. Read: logits (Vp,) floatX, of which the first V count; uniform (1,)
    float32 in [0, 1). Temperature 0 takes the likeliest id. Only the `top_k` likeliest (0: all)
    and, of these, the smallest set of probability `top_p` or more can be drawn; the likeliest
    always can.
    """
    if on_host(token):
        token[0] = _numpy_sample(logits[:V], float(uniform[0]), temperature, top_k, top_p)
        return
    block = min(MAX_THREADS, ceil_div(V, WARP) * WARP)
    _sample(token, logits, uniform, V, temperature, top_k, top_p, grid=1, block=block)


def _numpy_sample(
    logits: np.ndarray, uniform: float, temperature: float, top_k: int, top_p: float
) -> int:
    scores = logits.astype(np.float64)
    if temperature == 0.0:
        return int(scores.argmax())
    order = np.argsort(-scores, kind="stable")
    if top_k:
        order = order[:top_k]
    probs = np.exp((scores[order] - scores[order[0]]) / temperature)
    cumulative = probs.cumsum()
    if top_p < 1.0:
        # Ids before the one that reaches top_p, and that one.
        count = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
        cumulative = cumulative[:count]
    drawn = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(order[min(int(drawn), len(cumulative) - 1)])
