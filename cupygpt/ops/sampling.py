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
    order = _by_likelihood(logits)
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


def _by_likelihood(logits: np.ndarray) -> np.ndarray:
    """Ids by falling logit, equal ones by id.

    One sort of 64-bit keys, the logit's bits above the id, is several times as fast as a stable
    argsort of 50,000 numbers.
    """
    bits = (logits.astype(np.float32) + np.float32(0.0)).view(np.int32)  # -0.0 becomes 0.0
    # Turned so that unsigned order is falling order: of positive numbers all bits but the sign.
    falling = bits ^ (~(bits >> 31) & 0x7FFFFFFF)
    keys = falling.view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(len(bits), dtype=np.uint64)
    keys.sort()
    return keys.astype(np.uint32).astype(np.int64)
