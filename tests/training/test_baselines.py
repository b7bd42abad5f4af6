"""The losses of the unigram and the bigram model, which a run is compared with."""

import math

import numpy as np
import pytest

from cupygpt.errors import DataError
from cupygpt.training.baselines import unigram_bigram_nats


def test_baselines_by_hand() -> None:
    """Train 0 1 0 1 0: c(0) = 3, c(1) = 2, V = 3: p = 4/8, 3/8, 1/8."""
    unigram, bigram = unigram_bigram_nats([0, 1, 0, 1, 0], [0, 1, 2], 3)
    assert unigram == pytest.approx(-(math.log(3 / 8) + math.log(1 / 8)) / 2)
    first = (2 + 10 * 3 / 8) / (2 + 10)
    second = (0 + 10 * 1 / 8) / (2 + 10)
    assert bigram == pytest.approx(-(math.log(first) + math.log(second)) / 2)


def test_baseline_models_are_distributions() -> None:
    train = np.array([0, 3, 1, 1, 0, 3, 3, 2])
    for model in (0, 1):
        for context in range(5):
            nats = [unigram_bigram_nats(train, [context, b], 5)[model] for b in range(5)]
            assert sum(math.exp(-x) for x in nats) == pytest.approx(1)


def test_baselines_of_a_deterministic_text() -> None:
    cycle = np.tile(np.arange(50, dtype=np.uint16), 400)
    unigram, bigram = unigram_bigram_nats(cycle, cycle, 50257)
    assert unigram == pytest.approx(math.log((len(cycle) + 50257) / 401), abs=1e-3)
    assert bigram < 0.2


def test_baselines_need_tokens() -> None:
    for train, val in (([], [1, 2]), ([1], [1])):
        with pytest.raises(DataError, match="at least 1 and 2"):
            unigram_bigram_nats(train, val, 3)
    assert unigram_bigram_nats([1], [1, 2], 3)[1] > 0
