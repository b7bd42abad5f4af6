from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from support.devices import Device

from cupygpt.lab import oracle
from cupygpt.ops import sampling
from cupygpt.ops.sampling import NOT_FINITE, sample_token

CASES = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.6), (1.3, 9, 0.8), (1.0, 1, 1.0)]


def draw(dev: Device, logits: Any, V: int, uniform: float, *settings: float) -> int:
    """The id that a single text draws; what else the op writes is checked too."""
    drawn, tokens = dev.array([[-7]], "int32"), dev.output(1, "int32")
    positions, counts = dev.array([5], "int32"), dev.array([0], "int32")
    uniforms = dev.input([[uniform]], "float32")
    sample_token(drawn, tokens, positions, counts, logits.reshape(1, -1), uniforms, V, 9, *settings)
    (token,) = dev.get(drawn)[0].tolist()
    assert dev.get(tokens).tolist() == [max(token, 0)]
    assert (dev.get(positions).tolist(), dev.get(counts).tolist()) == ([6], [1])
    return int(token)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
@pytest.mark.parametrize("V", [1, 65, 257])
def test_draws_follow_the_distribution(
    dev: Device, rng: np.random.Generator, V: int, temperature: float, top_k: int, top_p: float
) -> None:
    """Ids lie one after the other on [0, 1), the likeliest first: their middles give them back."""
    logits = dev.input(2.0 * rng.standard_normal(384))
    values = dev.values(logits)[:V]
    probs = oracle.sampling_probabilities(values, temperature, top_k, top_p)
    order = np.array(sorted(range(V), key=lambda i: (-values[i], i)))
    ends = np.cumsum(probs[order])
    kept = np.flatnonzero(probs[order] > 1e-4)
    for place in kept[:: max(1, len(kept) // 4)]:
        middle = ends[place] - 0.5 * probs[order[place]]
        assert draw(dev, logits, V, middle, temperature, top_k, top_p) == order[place]


@pytest.mark.parametrize("settings", CASES)
def test_ends_of_the_interval(
    dev: Device, rng: np.random.Generator, settings: tuple[float, int, float]
) -> None:
    logits = dev.input(2.0 * rng.standard_normal(128))
    probs = oracle.sampling_probabilities(dev.values(logits)[:65], *settings)
    assert draw(dev, logits, 65, 0.0, *settings) == int(dev.values(logits)[:65].argmax())
    assert probs[draw(dev, logits, 65, 1.0 - 2.0**-24, *settings)] > 0.0


def test_temperature_zero_takes_the_first_of_the_largest(dev: Device) -> None:
    values = np.zeros(128)
    values[[40, 50]] = 3.0
    values[100] = 9.0  # padding
    assert draw(dev, dev.input(values), 65, 0.9, 0.0, 0, 1.0) == 40


@pytest.mark.parametrize("temperature", [1e-30, 1e-35, 1e-40, 1e-310])
def test_a_tiny_temperature_takes_the_largest(dev: Device, temperature: float) -> None:
    values = np.linspace(-3.0, 3.0, 128)
    assert draw(dev, dev.input(values), 65, 0.9, temperature, 0, 0.9) == 64


def test_a_huge_temperature_draws_all_alike(dev: Device) -> None:
    logits = dev.input(np.linspace(3.0, -3.0, 128))
    drawn = [draw(dev, logits, 65, (i + 0.5) / 65, 1e30, 0, 1.0) for i in (0, 20, 64)]
    assert drawn == [0, 20, 64]


def test_top_k_beyond_the_vocabulary_keeps_all(dev: Device) -> None:
    logits = dev.input(np.full(128, 1.0))
    assert draw(dev, logits, 65, 1.0 - 2.0**-24, 1.0, 2**40, 1.0) == 64


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_drawn_from_logits_that_are_not_finite(
    dev: Device, wrong: float, temperature: float
) -> None:
    values = np.linspace(-3.0, 3.0, 128)
    values[100] = wrong  # padding
    assert draw(dev, dev.input(values), 65, 0.5, temperature, 0, 1.0) >= 0
    values[40] = wrong
    assert draw(dev, dev.input(values), 65, 0.5, temperature, 0, 0.9) == NOT_FINITE


def test_ties_are_cut_by_id(dev: Device) -> None:
    """Sixty-five equal logits: top-k 4 keeps ids 0 to 3, top-p 0.05 the same number."""
    logits = dev.input(np.full(128, -2.0))
    for settings in [(1.0, 4, 1.0), (1.0, 0, 0.05)]:
        drawn = {draw(dev, logits, 65, u, *settings) for u in (0.1, 0.3, 0.6, 0.9)}
        assert drawn == {0, 1, 2, 3}


def test_vocabulary_of_gpt2(dev: Device, rng: np.random.Generator) -> None:
    with dev.unchecked():
        logits = dev.input(3.0 * rng.standard_normal(50304))
        values = dev.values(logits)[:50257]
        probs = oracle.sampling_probabilities(values, 0.8, 40, 0.9)
        token = draw(dev, logits, 50257, 0.5, 0.8, 40, 0.9)
        order = np.argsort(-values, kind="stable")
        assert token == order[np.searchsorted(np.cumsum(probs[order]), 0.5)]


def test_a_vocabulary_above_65536(dev: Device) -> None:
    """All tokens alike, so that the weights of all of them are added up."""
    V = 2**17
    with dev.unchecked():
        token = draw(dev, dev.input(np.zeros(V)), V, 70_000.5 / V, 1.0, 0, 1.0)
    assert token == 70_000


def test_texts_draw_by_their_own_numbers_and_counters(
    dev: Device, rng: np.random.Generator
) -> None:
    """Three texts at different steps: each takes its slot, and leaves the others as they are."""
    logits = dev.input(rng.standard_normal((3, 128)))
    uniforms = dev.input(rng.random((4, 3)), "float32")
    counts, slots = [0, 6, 3], [0, 2, 3]
    drawn, tokens = dev.array(np.full((4, 3), -7), "int32"), dev.output(3, "int32")
    positions, device_counts = dev.array([0, 8, 9], "int32"), dev.array(counts, "int32")
    sample_token(drawn, tokens, positions, device_counts, logits, uniforms, 65, 9, 1.0, 20, 0.9)
    wanted = np.full((4, 3), -7)
    for n, slot in enumerate(slots):
        alone = dev.input(dev.values(logits)[n])
        wanted[slot, n] = draw(dev, alone, 65, dev.values(uniforms)[slot, n], 1.0, 20, 0.9)
    np.testing.assert_array_equal(dev.get(drawn), wanted)
    assert dev.get(tokens).tolist() == [wanted[slot, n] for n, slot in enumerate(slots)]
    assert dev.get(positions).tolist() == [1, 9, 9]
    assert dev.get(device_counts).tolist() == [1, 7, 4]


@pytest.mark.parametrize("settings", [(0.7, 0, 1.0), (1.3, 9, 0.8)])
@pytest.mark.parametrize("V", [257])
def test_a_bin_with_too_many_tokens_draws_the_same(
    dev: Device, rng: np.random.Generator, V: int, settings: tuple[float, int, float]
) -> None:
    """A GPU that may collect one token only searches for most of them."""
    values = np.round(2.0 * rng.standard_normal(384), 1)  # some are equal
    logits, uniforms = dev.input(values), [0.0, 0.2, 0.5, 0.77, 0.95]
    usual = [draw(dev, logits, V, uniform, *settings) for uniform in uniforms]
    with patch.object(sampling, "MOST_COLLECTED", 1):
        assert [draw(dev, logits, V, uniform, *settings) for uniform in uniforms] == usual


@pytest.mark.parametrize("top_k", [3, 60])
def test_top_k_reaches_tokens_without_weight(
    dev: Device, rng: np.random.Generator, top_k: int
) -> None:
    """At a temperature of 0.01 two tokens have all the weight; top-k counts the others too."""
    values = rng.permutation(np.linspace(0.0, 64.0, 128))
    first = int(values.argmax())
    second = (first + 50) % 128
    values[second] = 64.0
    logits = dev.input(values)
    drawn = {draw(dev, logits, 128, u, 0.01, top_k, 1.0) for u in (0.1, 0.4, 0.9)}
    assert drawn == {first, second}
