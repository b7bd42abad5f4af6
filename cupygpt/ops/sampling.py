"""Draw the next token: temperature, top-k, nucleus (Holtzman et al. 2020, arXiv:1904.09751)."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch

LEAST_THREADS, MAX_THREADS = 256, 1024

NOT_FINITE = -1
"""The token of logits from which nothing can be drawn."""

LEAST_TEMPERATURE = 1e-30
"""Below it, 1 / temperature may overflow; any such draw takes the largest logit."""

NUM_BINS = 4096
"""Bins of equal width, from the largest logit to the smallest; on the CPU only."""

GPU_BINS, MOST_COLLECTED = 1024, 2048
"""Bins of a row on a GPU, and the tokens of one bin that shared memory holds."""

LARGE_VOCABULARY = 8192
"""From this on a row keeps a block of MAX_THREADS busy."""

_sample = Kernel(
    "sampling.cu",
    "sample_token",
    "drawn:i32* tokens:i32* positions:i32* counts:i32* logits:floatX* uniforms:f32* slots:i32 "
    "V:i32 Vp:i32 last_position:i32 temperature:f32 top_k:i32 top_p:f32",
)


def sample_token(
    drawn: Array,
    tokens: Array,
    positions: Array,
    counts: Array,
    logits: Array,
    uniforms: Array,
    V: int,
    last_position: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    """Draw an id below V from softmax(logits / temperature) for each of N texts.

    Everything is ready for the next step afterwards, without the host. With the counter of a text
    c = counts[n] and slot = c % slots: drawn[slot, n] = the id, decided by uniforms[slot, n];
    tokens[n] = the same; positions[n] += 1, up to `last_position`; counts[n] = c + 1.

    Temperature 0 takes the id with the largest logit. Only the `top_k` likeliest ids can be drawn
    (0: all), and among them only the fewest likeliest whose probability reaches `top_p`. The
    likeliest id can always be drawn. If a logit is NaN or infinite, the id is NOT_FINITE, and the
    token 0.

    Written: drawn (slots, N) int32 in one slot of each text; tokens (N,) int32. Updated in place:
    positions, counts (N,) int32. Read: logits (N, Vp) floatX, of which the first V count; uniforms
    (slots, N) float32 in [0, 1).
    """
    top_k = min(top_k, V)
    temperature = temperature if temperature >= LEAST_TEMPERATURE else 0.0
    slots, N = drawn.shape
    if on_host(drawn):
        for n in range(N):
            slot = int(counts[n]) % slots
            uniform = float(uniforms[slot, n])
            drawn[slot, n] = _numpy_sample(logits[n, :V], uniform, temperature, top_k, top_p)
            tokens[n] = max(int(drawn[slot, n]), 0)
        np.minimum(positions + 1, last_position, out=positions)
        counts += 1
        return
    Vp = int(logits.shape[1])
    _sample(
        drawn, tokens, positions, counts, logits, uniforms, slots, V, Vp, last_position,
        temperature, top_k, top_p, launch=sample_launch(N, V),
    )  # fmt: skip


def sample_launch(N: int, V: int) -> Launch:
    """A block for each text."""
    threads = MAX_THREADS if V >= LARGE_VOCABULARY else LEAST_THREADS
    defines = {"BINS": GPU_BINS, "MOST_COLLECTED": MOST_COLLECTED}
    return Launch(N, threads, defines=defines)


def _numpy_sample(
    logits: np.ndarray, uniform: float, temperature: float, top_k: int, top_p: float
) -> int:
    if not np.isfinite(logits).all():
        return NOT_FINITE
    if temperature == 0.0:
        return int(logits.argmax())
    ranking = _Ranking(logits, temperature)
    total = float(ranking.bin_ends[-1])
    if 0 < top_k < len(logits):
        total = ranking.weight_of_likeliest(top_k)
    if top_p < 1.0:
        total = ranking.weight_reaching(top_p * total)
    return ranking.id_at(uniform * total)


class _Ranking:
    """Ids by falling logit, equal logits by rising id; an id weighs exp(logit / temperature).

    Laid end to end in this order, the weights cover an interval that starts at 0; a draw is a point
    of it. To sort 50,000 logits takes as long as to compute them. So ids are put into bins by
    logit, and only the one bin that a question is about is sorted.
    """

    def __init__(self, logits: np.ndarray, temperature: float) -> None:
        self.logits = logits
        below = logits.max() - logits
        self.weights = np.exp(below * (-1.0 / temperature))
        width = float(below.max()) / NUM_BINS or 1.0
        self.bins = np.minimum(below / width, NUM_BINS - 1).astype(np.int64)
        self.counts = np.bincount(self.bins, minlength=NUM_BINS).cumsum()
        """Number of ids in a bin and all bins before it."""
        self.bin_ends = np.bincount(self.bins, self.weights, NUM_BINS).cumsum()
        """Where the weights of a bin end on the interval."""

    def weight_of_likeliest(self, count: int) -> float:
        """The weight of the `count` likeliest ids together."""
        index = int(np.searchsorted(self.counts, count))
        _, ends = self._sorted(index)
        return float(ends[count - 1 - (int(self.counts[index - 1]) if index else 0)])

    def weight_reaching(self, target: float) -> float:
        """The weight of the fewest likeliest ids that weigh `target` or more together."""
        _, ends = self._sorted(int(np.searchsorted(self.bin_ends, target)))
        return float(ends[min(int(np.searchsorted(ends, target)), len(ends) - 1)])

    def id_at(self, target: float) -> int:
        """The id whose weight covers the point `target` of the interval."""
        ids, ends = self._sorted(int(np.searchsorted(self.bin_ends, target, side="right")))
        return int(ids[min(int(np.searchsorted(ends, target, side="right")), len(ids) - 1)])

    def _sorted(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a bin in order, and where the weight of each ends on the interval."""
        index = min(index, int(self.bins.max()))  # the last bin that is not empty
        ids = np.flatnonzero(self.bins == index)
        ids = ids[np.argsort(-self.logits[ids], kind="stable")]
        start = float(self.bin_ends[index - 1]) if index else 0.0
        return ids, start + self.weights[ids].cumsum(dtype=np.float64)
