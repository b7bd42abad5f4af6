"""linear: the product with bias and its gradients against float64, on every kind of array."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from emulator import product
from support import oracle
from support.devices import EPSILON, STARTED_AT, Device, twice
from support.gpu import require_gpu

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.device.precision import BF16, FP32, TF32
from cupygpt.kernels.matmul import register_matmul
from cupygpt.ops import linear
from cupygpt.ops.linear import (
    gelu_linear_backward,
    linear_backward,
    linear_forward,
    linear_gelu_forward,
)

Put = Callable[[np.ndarray], Any]

# Leading axes, C, OC: one row, sizes that do not divide by tiles, and a row length of the head.
SHAPES = [((1,), 8, 8), ((2, 3), 40, 24), ((3, 37), 64, 192), ((2, 128), 32, 16640)]


class Emulated(np.ndarray):
    """Stands for the emulated device: an ndarray type of its own."""


register_matmul(Emulated, product.matmul)


def on_cpu(values: np.ndarray) -> Any:
    return values.astype(np.float32)


def on_emulator(values: np.ndarray) -> Any:
    return values.astype(np.float32).view(Emulated)


def on_gpu(values: np.ndarray) -> Any:
    import cupy

    require_gpu()
    return cupy.asarray(values, np.float32)


def host(array: Any) -> np.ndarray:
    plain = np.asarray(array.get() if hasattr(array, "get") else array)
    return (from_bfloat16(plain) if plain.dtype == np.uint16 else plain).astype(np.float64)


DEVICES = [
    pytest.param(on_cpu, id="cpu"),
    pytest.param(on_emulator, id="emulated"),
    pytest.param(on_gpu, id="gpu", marks=pytest.mark.gpu),
]


def limit(terms: int, magnitude: np.ndarray) -> np.ndarray:
    """Rounding of a float32 sum of `terms` terms, in any order."""
    return (4 + np.sqrt(terms)) * 2.0**-23 * magnitude


@pytest.mark.parametrize("put", DEVICES)
@pytest.mark.parametrize(("lead", "C", "OC"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_forward(put: Put, lead: tuple[int, ...], C: int, OC: int, with_bias: bool) -> None:
    rng = np.random.default_rng(1)
    inp, weight, bias = (put(rng.standard_normal(s)) for s in ((*lead, C), (OC, C), (OC,)))
    out = put(np.full((*lead, OC), np.nan))
    linear_forward(out, inp, weight, bias if with_bias else None, precision=FP32)
    want, magnitude = host(inp) @ host(weight).T, np.abs(host(inp)) @ np.abs(host(weight)).T
    if with_bias:
        want, magnitude = want + host(bias), magnitude + np.abs(host(bias))
    assert (np.abs(host(out) - want) <= limit(C, magnitude)).all()


@pytest.mark.parametrize("put", DEVICES)
@pytest.mark.parametrize(("lead", "C", "OC"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_backward(put: Put, lead: tuple[int, ...], C: int, OC: int, with_bias: bool) -> None:
    if with_bias and put is on_emulator:
        pytest.skip("bias_backward is a kernel, tested with the kernels")
    rng = np.random.default_rng(2)
    shapes = ((*lead, OC), (*lead, C), (OC, C))
    dout, inp, weight = (put(rng.standard_normal(s)) for s in shapes)
    dinp, partials = put(np.full((*lead, C), np.nan)), put(np.full(256 * OC, np.nan))
    dweight, dbias = put(np.full((OC, C), 3.0)), put(np.full(OC, 3.0))
    linear_backward(
        dinp, dweight, dbias if with_bias else None, dout, inp, weight, partials, precision=FP32
    )
    rows, columns, matrix = host(dout).reshape(-1, OC), host(inp).reshape(-1, C), host(weight)
    N = len(rows)
    for got, want, terms, magnitude in (
        (dinp, rows @ matrix, OC, np.abs(rows) @ np.abs(matrix)),
        (dweight, 3 + rows.T @ columns, N, 3 + np.abs(rows.T) @ np.abs(columns)),
        (dbias, 3 + with_bias * rows.sum(0), N, 3 + np.abs(rows).sum(0)),
    ):
        error = np.abs(host(got).reshape(want.shape) - want)
        assert (error <= limit(terms, magnitude)).all(), error.max()


def test_bfloat16_bits_on_the_emulated_device_are_numbers() -> None:
    rng = np.random.default_rng(3)

    def put(values: np.ndarray) -> Any:
        return to_bfloat16(values).view(Emulated)

    inp, weight, dout = (put(rng.standard_normal(s)) for s in ((6, 8), (16, 8), (6, 16)))
    out, dinp = put(np.zeros((6, 16))), put(np.zeros((6, 8)))
    dweight = on_emulator(np.full((16, 8), 3.0))
    linear_forward(out, inp, weight, None, precision=BF16)
    linear_backward(dinp, dweight, None, dout, inp, weight, put(np.zeros(0)), precision=BF16)
    for got, want in (
        (out, host(inp) @ host(weight).T),
        (dinp, host(dout) @ host(weight)),
        (dweight, 3 + host(dout).T @ host(inp)),
    ):
        assert type(got) is Emulated
        assert np.abs(host(got) - want).max() <= 2.0**-8 * np.abs(want).max()


@pytest.mark.gpu
def test_tf32_reaches_every_product_of_a_gpu() -> None:
    if require_gpu().compute_capability < (8, 0):
        pytest.skip("TF32 needs compute capability 8.0")
    rng = np.random.default_rng(4)
    inp, weight, dout = (on_gpu(rng.standard_normal(s)) for s in ((256, 256),) * 3)
    want = [
        host(inp) @ host(weight).T,
        host(dout) @ host(weight),
        host(dout).T @ host(inp),
    ]
    for precision in (FP32, TF32):
        got = [on_gpu(np.zeros((256, 256))) for _ in want]
        linear_forward(got[0], inp, weight, None, precision=precision)
        linear_backward(got[1], got[2], None, dout, inp, weight, None, precision=precision)
        errors = [np.abs(host(g) - w).max() for g, w in zip(got, want, strict=True)]
        assert all((error > 1e-3) == (precision is TF32) for error in errors), errors


GELU_SHAPES = [((1,), 8, 8), ((3, 37), 64, 192), ((2, 128), 128, 512)]


@pytest.mark.parametrize(("lead", "C", "OC"), GELU_SHAPES)
def test_product_and_gelu(
    dev: Device, rng: np.random.Generator, lead: tuple[int, ...], C: int, OC: int
) -> None:
    inp = dev.input(rng.standard_normal((*lead, C)))
    weight = dev.input(rng.standard_normal((OC, C)) / np.sqrt(C))
    bias = dev.input(rng.standard_normal(OC))
    out, hidden = dev.output((*lead, OC)), dev.output((*lead, OC))
    linear_gelu_forward(out, hidden, inp, weight, bias, precision=dev.precision)
    arrays = [dev.values(x) for x in (inp, weight, bias)]
    want, plain = twice(lambda x, w, b: x @ w.T + b, *arrays)
    dev.agree("hidden", hidden, want, plain, C)
    # The GELU may be taken of the sums before or after they are rounded to bfloat16.
    noise = 2 * EPSILON[dev.floatX] + np.sqrt(C) * EPSILON["float32"]
    error = np.abs(dev.values(out) - oracle.gelu_forward(want)).max()
    assert error <= noise * np.abs(want).max()


@pytest.mark.parametrize(("lead", "C", "OC"), GELU_SHAPES)
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_through_product_and_gelu(
    dev: Device, rng: np.random.Generator, lead: tuple[int, ...], C: int, OC: int, fused: bool
) -> None:
    hidden = dev.input(rng.standard_normal((*lead, C)))
    weight = dev.input(rng.standard_normal((OC, C)) / np.sqrt(OC))
    dout = dev.input(rng.standard_normal((*lead, OC)))
    inp = dev.input(oracle.gelu_forward(dev.values(hidden)))
    dhidden, partials = dev.output((*lead, C)), dev.output(256 * max(C, OC), "float32")
    dweight, dbias = dev.accumulated((OC, C), "float32"), dev.accumulated(OC, "float32")
    sums = dev.accumulated(C, "float32")
    with patch.object(linear, "FUSED_GELU_BYTES", 0 if fused else 1 << 30):
        gelu_linear_backward(
            dhidden, dweight, dbias, sums, dout, hidden, inp, weight, partials,
            precision=dev.precision,
        )  # fmt: skip
    rows, columns = dev.values(dout).reshape(-1, OC), dev.values(inp).reshape(-1, C)
    dinp = (rows @ dev.values(weight)).reshape(*lead, C)
    want = oracle.gelu_backward(dinp, dev.values(hidden))
    noise = 3 * EPSILON[dev.floatX] + np.sqrt(OC) * EPSILON["float32"]
    assert np.abs(dev.values(dhidden) - want).max() <= noise * np.abs(dinp).max()
    start = np.float32(STARTED_AT)
    for name, got, exact in (
        ("dweight", dweight, rows.T @ columns),
        ("dbias", dbias, rows.sum(0)),
        ("sums", sums, dev.values(dhidden).reshape(-1, C).sum(0)),
    ):
        noise = 4 * np.sqrt(len(rows)) * EPSILON["float32"] * np.abs(exact).max()
        if name == "sums":  # of the rows before or after they are rounded
            noise += EPSILON[dev.floatX] * np.abs(dev.values(dhidden)).reshape(-1, C).sum(0).max()
        assert np.abs(dev.values(got) - start - exact).max() <= noise + 1e-6, name
