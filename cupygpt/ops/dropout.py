"""Dropout with a counter-based random generator: the mask is a function and is never stored.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a key (the
seed) and a counter (element / 4, optimizer step, site) to four random words, one for each of four
elements. So the backward pass, a resumed run and every device compute the same masks.
"""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import launch_per_pack, num_packs

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
BLOCK_COUNTERS = 1 << 13
"""Counters that a CPU thread handles at once; Philox needs a dozen uint64 temporaries for each."""
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

_dropout = Kernel(
    "dropout.cu",
    "dropout",
    "out:floatX* inp:floatX* state:u32* rng_offset:i64 num_packs:i64 site:u32 threshold:u32 "
    "scale:f32",
)


def dropout(out: Array, inp: Array, state: Array, site: int, p: float, rng_offset: int = 0) -> None:
    """out = inp / (1 - p) where the mask keeps the element, else 0; forward and backward alike.

    Written: out floatX (may be inp). Read: inp, same shape; state (4,) uint32 in the device's
    memory: seed low, seed high, optimizer step, unused. `site` numbers the places of one step where
    dropout is applied, so that each has its own mask. `p` is the probability of dropping, in
    [0, 1). If the arrays are a part of larger ones (the batch slice of a core, the rows of a rank),
    `rng_offset`, a multiple of 4, is the index of inp[0] there: the parts then share one mask.
    """
    threshold, scale = min(round(p * 2**32), 2**32 - 1), 1.0 / (1.0 - p)
    if on_host(out):
        _numpy_dropout(out.reshape(-1), inp.reshape(-1), state, site, threshold, scale, rng_offset)
        return
    packs = num_packs(out)
    _dropout(
        out,
        inp,
        state,
        rng_offset,
        packs,
        site,
        threshold,
        scale,
        launch=launch_per_pack(packs),
    )


def _numpy_dropout(
    out: np.ndarray,
    inp: np.ndarray,
    state: np.ndarray,
    site: int,
    threshold: int,
    scale: float,
    rng_offset: int,
) -> None:
    seed_low, seed_high, step = (int(word) for word in state[:3])

    def counters(start: int, stop: int) -> None:
        index = np.arange(rng_offset // 4 + start, rng_offset // 4 + stop, dtype=np.uint64)
        words = philox(index, step, site, seed_low, seed_high)
        block = slice(4 * start, min(4 * stop, out.size))
        keep = words.reshape(-1)[: block.stop - block.start] >= np.uint32(threshold)
        np.multiply(inp[block], keep, out=out[block])
        out[block] *= scale

    for_blocks(counters, -(-out.size // 4), BLOCK_COUNTERS)


def philox(index: Array, step: int, site: int, key0: int, key1: int) -> Array:
    """Words (n, 4) uint32 of Philox4x32-10 for the counters (index low, index high, step, site).

    Read: index (n,) uint64; the others are 32-bit words.
    """
    c0, c1 = index & _WORD, index >> _HALF
    c2, c3 = np.full_like(index, step), np.full_like(index, site)
    for _ in range(ROUNDS):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0 = (product1 >> _HALF) ^ c1 ^ np.uint64(key0)
        c2 = (product0 >> _HALF) ^ c3 ^ np.uint64(key1)
        c1, c3 = product1 & _WORD, product0 & _WORD
        key0, key1 = (key0 + KEY_STEPS[0]) & 0xFFFFFFFF, (key1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)
