"""The oracle's gradients against central differences of its forward functions."""

from collections.abc import Callable

import numpy as np
import pytest

from cupygpt.lab import oracle

STEP = 1e-5


def numeric_gradient(loss: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[index] = STEP
        gradient[index] = (loss(at + change) - loss(at - change)) / (2.0 * STEP)
    return gradient


def assert_gradient(got: np.ndarray, loss: Callable[[np.ndarray], float], at: np.ndarray) -> None:
    np.testing.assert_allclose(got, numeric_gradient(loss, at), rtol=1e-6, atol=1e-8)


def test_layernorm(rng: np.random.Generator) -> None:
    inp, dout = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5))
    weight, bias = rng.standard_normal(5), rng.standard_normal(5)

    def loss(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
        return float((oracle.layernorm_forward(x, w, b)[0] * dout).sum())

    dinp, dweight, dbias = oracle.layernorm_backward(dout, inp, weight)
    assert_gradient(dinp, lambda x: loss(x, weight, bias), inp)
    assert_gradient(dweight, lambda w: loss(inp, w, bias), weight)
    assert_gradient(dbias, lambda b: loss(inp, weight, b), bias)


def test_gelu(rng: np.random.Generator) -> None:
    inp, dout = 2.0 * rng.standard_normal(20), rng.standard_normal(20)
    got = oracle.gelu_backward(dout, inp)
    assert_gradient(got, lambda x: float((oracle.gelu_forward(x) * dout).sum()), inp)


def test_gelu_known_values() -> None:
    """Of the tanh form; the exact one gives 0.841345 and -0.158655."""
    got = oracle.gelu_forward(np.array([0.0, 1.0, -1.0, 10.0]))
    np.testing.assert_allclose(got, [0.0, 0.841192, -0.158808, 10.0], atol=1e-6)


def test_encoder(rng: np.random.Generator) -> None:
    tokens = np.array([[1, 3, 1], [1, 0, 3]])
    wte, wpe = rng.standard_normal((5, 2)), rng.standard_normal((4, 2))
    dout = rng.standard_normal((2, 3, 2))
    dwte, dwpe = oracle.encoder_backward(tokens, dout, 5, 4)
    assert_gradient(
        dwte, lambda w: float((oracle.encoder_forward(tokens, w, wpe) * dout).sum()), wte
    )
    assert_gradient(
        dwpe, lambda w: float((oracle.encoder_forward(tokens, wte, w) * dout).sum()), wpe
    )


def test_classifier(rng: np.random.Generator) -> None:
    logits, targets = rng.standard_normal((3, 8)), np.array([4, -1, 0])

    def loss(x: np.ndarray) -> float:
        return 0.25 * float(oracle.classifier(x, targets, 5, 0.25)[0].sum())

    assert_gradient(oracle.classifier(logits, targets, 5, 0.25)[1], loss, logits)


def test_classifier_of_equal_logits() -> None:
    losses, _ = oracle.classifier(np.zeros((1, 128)), np.array([7]), 65, 1.0)
    np.testing.assert_allclose(losses, np.log(65.0))


def test_adamw_by_hand() -> None:
    """First step from zero: both moments are corrected to the gradient, then decay is added."""
    zeros = np.zeros(2)
    params, m, v = oracle.adamw(
        np.array([1.0, 1.0]), zeros, zeros, np.array([0.5, -2.0]), np.array([0.0, 1.0]),
        grad_norm=1.0, lr=0.1, step=1, beta1=0.9, beta2=0.99, weight_decay=0.2, grad_clip=2.0,
    )  # fmt: skip
    np.testing.assert_allclose(m, [0.05, -0.2])
    np.testing.assert_allclose(v, [0.0025, 0.04])
    np.testing.assert_allclose(params, [0.9, 1.1 - 0.1 * 0.2], rtol=1e-6)


def test_sampling_probabilities_by_hand() -> None:
    logits = np.log([0.5, 0.125, 0.25, 0.125])
    everything = oracle.sampling_probabilities(logits, 1.0, 0, 1.0)
    np.testing.assert_allclose(everything, [0.5, 0.125, 0.25, 0.125])
    np.testing.assert_allclose(
        oracle.sampling_probabilities(logits, 1.0, 3, 1.0), np.array([4, 1, 2, 0]) / 7
    )
    np.testing.assert_allclose(
        oracle.sampling_probabilities(logits, 1.0, 0, 0.6), [2 / 3, 0, 1 / 3, 0]
    )


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_keeps_the_mean(p: float) -> None:
    out = oracle.dropout(np.ones(8000), 1, 2, 3, p)
    assert abs(out.mean() - 1.0) < 0.05
    assert set(np.unique(out)) == {0.0, 1.0 / (1.0 - p)}
