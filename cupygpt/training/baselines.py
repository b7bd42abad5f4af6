"""What a loss is compared with: the unigram and the bigram model of the data, and bits per byte."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import TokenShard, num_tokens, token_blocks
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.data.validation import ValidationBatches, ValidationRows
from cupygpt.errors import DataError

BASELINE_VOCAB = 1024
"""Baselines are printed up to this vocabulary; beyond it few pairs are seen twice."""

BASELINE_TOKENS = 2**22
"""Training tokens that count, the same share of each file."""

ASKED_TOKENS = 2**20
"""Of more validation tokens, baselines are the loss of an even share."""

COUNTED_TOKENS = 2**24
"""Of more validation tokens, an even share tells the mean bytes of all to a thousandth."""

BIGRAM_STRENGTH = 10.0
"""How many times a context must be seen to count as much as the unigram prior."""


def ngram_baselines(
    validation: ValidationRows | None, train: Sequence[TokenShard], V: int
) -> tuple[float, float] | None:
    """Loss of the unigram and the bigram model on the rows of a validation, or a share of many.

    None without validation, and for a vocabulary where it would say little.
    """
    if validation is None or V > BASELINE_VOCAB:
        return None
    share = validation.share_of(ASKED_TOKENS)
    rows = [(x[:n], y[:n]) for x, y, n in ValidationBatches(share, B=256, V=V)]
    inputs, targets = (np.concatenate([row[i].ravel() for row in rows]) for i in (0, 1))
    counted = min(1.0, BASELINE_TOKENS / num_tokens(train))
    pieces = [  # Read, not mapped: a mapped file would stay open, and there may be thousands.
        block
        for shard in train
        for block in token_blocks(shard, math.ceil(counted * shard.num_tokens))
    ]
    return unigram_bigram_nats(pieces, inputs, targets, V)


def bytes_per_token(
    validation: ValidationRows | None, tokenizer: Tokenizer | None, V: int
) -> float | None:
    """Mean bytes of the targets of a validation, or a share of many, for its bits per byte.

    None without validation, or if no tokenizer is known. End of text counts 0 bytes.
    """
    if validation is None or tokenizer is None:
        return None
    counts = np.zeros(V, np.int64)
    share = validation.share_of(COUNTED_TOKENS)
    for _, targets, n in ValidationBatches(share, B=256, V=V):
        counts += np.bincount(targets[:n].ravel(), minlength=V)
    total = sum(
        int(counts[i]) * len(tokenizer.decode_bytes([int(i)]))
        for i in np.flatnonzero(counts)
        if i != tokenizer.eot
    )
    return total / int(counts.sum()) if total else None


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """Bits per byte of a loss in nats per token."""
    return None if bytes_per_token is None else loss / math.log(2.0) / bytes_per_token


def unigram_bigram_nats(
    train: Sequence[npt.ArrayLike], inputs: npt.ArrayLike, targets: npt.ArrayLike, V: int
) -> tuple[float, float]:
    """Loss in nats per token of a unigram and a bigram model: landmarks for a training run.

    Both are fitted on the arrays `train` of ids below V, and predict each of `targets` (m,), the
    bigram model from the token before it, `inputs` (m,). Unigram: add-one smoothing, p(b) =
    (c(b) + 1) / (n + V). Bigram: Dirichlet smoothing towards the unigram, p(b | a) =
    (c(a, b) + 10 p(b)) / (c(a) + 10), where c(a) counts the times a is followed by anything.

    Raises DataError if there is nothing to fit or to predict.
    """
    pieces = [np.asarray(piece).astype(np.int64) for piece in train]
    before, asked = (np.asarray(ids).astype(np.int64) for ids in (inputs, targets))
    n = sum(len(piece) for piece in pieces)
    if n < 1 or len(asked) < 1:
        raise DataError(
            f"{n} training tokens and {len(asked)} to predict; at least 1 of each is needed."
        )
    seen = _count(pieces, V)
    unigram = (seen + 1.0) / (n + V)
    prior = unigram[asked]
    followed = _count([piece[:-1] for piece in pieces], V)
    found = np.concatenate([piece[:-1] * V + piece[1:] for piece in pieces])
    pairs, counts = np.unique(found, return_counts=True)
    pair_counts = _counts_of(before * V + asked, pairs, counts)
    bigram = (pair_counts + BIGRAM_STRENGTH * prior) / (followed[before] + BIGRAM_STRENGTH)
    return float(-np.log(prior).mean()), float(-np.log(bigram).mean())


def _count(pieces: Sequence[npt.NDArray[np.int64]], V: int) -> npt.NDArray[np.int64]:
    """(V,) how often each id occurs."""
    return np.bincount(np.concatenate(pieces), minlength=V)


def _counts_of(
    wanted: npt.NDArray[np.int64], known: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """counts[i] where wanted equals known[i] (sorted), 0 where it equals none."""
    if not len(known):
        return np.zeros_like(wanted)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, counts[at], 0)
