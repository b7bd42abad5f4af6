"""What a loss is compared with: the unigram and the bigram model of the data, and bits per byte."""

import math

import numpy as np
import numpy.typing as npt

from cupygpt.errors import DataError
from cupygpt.training.open_data import Data

BASELINE_VOCAB = 1024
"""Baselines are printed up to this vocabulary; beyond it few pairs are seen twice."""

BASELINE_TOKENS = 2**22
"""Tokens of either file that count."""

BIGRAM_STRENGTH = 10.0
"""How many times a context must be seen to count as much as the unigram prior."""


def ngram_baselines(data: Data, V: int) -> tuple[float, float] | None:
    """Validation loss of the unigram and the bigram model, where that says something."""
    if not data.val or V > BASELINE_VOCAB:
        return None
    train = np.asarray(data.train[0].tokens[:BASELINE_TOKENS])
    return unigram_bigram_nats(train, data.val[0].tokens, V)


def bytes_per_token(data: Data) -> float | None:
    """Mean bytes of a token, to show losses in bits per byte; None if no tokenizer is known.

    Over the first 2**20 tokens of the first validation file; end of text counts 0 bytes.
    """
    if not data.val or data.tokenizer is None:
        return None
    sample = np.asarray(data.val[0].tokens[: 1 << 20])
    ids, counts = np.unique(sample, return_counts=True)
    eot = data.tokenizer.eot
    total = sum(
        int(count) * len(data.tokenizer.decode_bytes([int(i)]))
        for i, count in zip(ids, counts, strict=True)
        if i != eot
    )
    return total / len(sample) if total else None


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """Bits per byte of a loss in nats per token."""
    return None if bytes_per_token is None else loss / math.log(2.0) / bytes_per_token


def unigram_bigram_nats(train: npt.ArrayLike, val: npt.ArrayLike, V: int) -> tuple[float, float]:
    """Loss in nats per token of a unigram and a bigram model: landmarks for a training run.

    Both are fitted on `train` (n,) and evaluated on `val` (m,), each predicting val[1:], ids
    below V; of either array the first 4 Mi tokens count. Unigram: add-one smoothing, p(b) =
    (c(b) + 1) / (n + V). Bigram: Dirichlet smoothing towards the unigram, p(b | a) =
    (c(a, b) + 10 p(b)) / (c(a) + 10), where c(a) counts the times a is followed by anything.

    Raises DataError if `val` has fewer than 2 tokens or `train` none.
    """
    seen = np.asarray(train)[:BASELINE_TOKENS].astype(np.int64)
    asked = np.asarray(val)[:BASELINE_TOKENS].astype(np.int64)
    if len(seen) < 1 or len(asked) < 2:
        raise DataError(
            f"{len(seen)} training and {len(asked)} validation tokens; at least 1 and 2 are needed."
        )
    unigram = (np.bincount(seen, minlength=V) + 1.0) / (len(seen) + V)
    prior = unigram[asked[1:]]
    pairs, counts = np.unique(seen[:-1] * V + seen[1:], return_counts=True)
    wanted = asked[:-1] * V + asked[1:]
    pair_counts = _counts_of(wanted, pairs, counts)
    context_counts = np.bincount(seen[:-1], minlength=V)[asked[:-1]]
    bigram = (pair_counts + BIGRAM_STRENGTH * prior) / (context_counts + BIGRAM_STRENGTH)
    return float(-np.log(prior).mean()), float(-np.log(bigram).mean())


def _counts_of(
    wanted: npt.NDArray[np.int64], known: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """counts[i] where wanted equals known[i] (sorted), 0 where it equals none."""
    if not len(known):
        return np.zeros_like(wanted)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, counts[at], 0)
