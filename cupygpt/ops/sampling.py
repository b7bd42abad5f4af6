"""Drawing the next token: temperature, top-k, nucleus (Holtzman et al. 2020, arXiv:1904.09751)."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch, ceil_div

MAX_THREADS = 1024
WARP = 32

NUM_BINS = 4096
"""Of equal width, from the largest logit to the smallest; on the CPU only."""

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
    _sample(token, logits, uniform, V, temperature, top_k, top_p, launch=Launch(1, block))


def _numpy_sample(
    logits: np.ndarray, uniform: float, temperature: float, top_k: int, top_p: float
) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    ranking = _Ranking(logits, temperature)
    total = float(ranking.weights[-1])
    if 0 < top_k < len(logits):
        total = ranking.weight_of_first(top_k)
    if top_p < 1.0:
        total = ranking.weight_reaching(top_p * total)
    return ranking.id_at(uniform * total)


class _Ranking:
    """Ids by falling logit, equal ones by id, with their weights exp(logit / temperature).

    Sorting 50,000 logits takes as long as computing them: they are thrown into bins, and only the
    bin that matters is sorted.
    """

    def __init__(self, logits: np.ndarray, temperature: float) -> None:
        self.logits = logits
        behind = logits.max() - logits
        self.each = np.exp(behind * (-1.0 / temperature))
        width = float(behind.max()) / NUM_BINS or 1.0
        self.bins = np.minimum(behind / width, NUM_BINS - 1).astype(np.int64)
        self.counts = np.bincount(self.bins, minlength=NUM_BINS).cumsum()
        self.weights = np.bincount(self.bins, self.each, NUM_BINS).cumsum()

    def weight_of_first(self, count: int) -> float:
        """Weight of the `count` likeliest ids together."""
        number = int(np.searchsorted(self.counts, count))
        _, sums = self._sorted(number)
        return float(sums[count - 1 - (int(self.counts[number - 1]) if number else 0)])

    def weight_reaching(self, target: float) -> float:
        """Weight of the fewest likeliest ids that have `target` or more together."""
        _, sums = self._sorted(int(np.searchsorted(self.weights, target)))
        return float(sums[min(int(np.searchsorted(sums, target)), len(sums) - 1)])

    def id_at(self, target: float) -> int:
        """The id whose share of the weights, laid end to end, holds `target`."""
        ids, sums = self._sorted(int(np.searchsorted(self.weights, target, side="right")))
        return int(ids[min(int(np.searchsorted(sums, target, side="right")), len(ids) - 1)])

    def _sorted(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a bin in order, and the weight of all ids up to and with each of them."""
        number = min(number, int(self.bins.max()))  # the last that is not empty
        ids = np.flatnonzero(self.bins == number)
        ids = ids[np.argsort(-self.logits[ids], kind="stable")]
        before = float(self.weights[number - 1]) if number else 0.0
        return ids, before + self.each[ids].cumsum(dtype=np.float64)
