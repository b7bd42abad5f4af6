"""linear: the product with bias and its gradients against float64, on every kind of array."""

from unittest.mock import patch

import numpy as np
import pytest
from support.devices import STARTED_AT, Device, make_device, round_to, twice
from support.gpu import require_gpu

from cupygpt.device.precision import FP32, TF32
from cupygpt.lab import oracle
from cupygpt.lab.tolerance import EPSILON
from cupygpt.ops import linear
from cupygpt.ops.linear import (
    gelu_linear_backward,
    linear_backward,
    linear_few_rows,
    linear_forward,
    linear_gelu_forward,
)

# Leading axes, C, OC: one row, sizes that do not divide by tiles, and a row length of the head.
SHAPES = [((1,), 8, 8), ((2, 3), 40, 24), ((3, 37), 64, 192), ((2, 128), 32, 16640)]


@pytest.mark.parametrize(("lead", "C", "OC"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_forward(
    dev: Device, rng: np.random.Generator, lead: tuple[int, ...], C: int, OC: int, with_bias: bool
) -> None:
    inp, weight, bias = (dev.input(rng.standard_normal(s)) for s in ((*lead, C), (OC, C), (OC,)))
    out = dev.output((*lead, OC))
    linear_forward(out, inp, weight, bias if with_bias else None, precision=dev.precision)
    arrays = [dev.values(x) for x in (inp, weight, bias)]
    want, plain = twice(lambda x, w, b: x @ w.T + with_bias * b, *arrays)
    dev.agree("out", out, want, plain, C)


# N, C, OC, form: one row of one pack; more outputs than whole blocks; rows that several warps
# share, in one round of loads and in two. Each is compiled, so they are few.
FEW_ROWS = [
    (1, 8, 3, "plain"),
    (4, 40, 9, "accumulate"),
    (3, 1032, 6, "norm gelu"),
    (1, 4200, 5, "norm"),
]


@pytest.mark.parametrize(("N", "C", "OC", "form"), FEW_ROWS)
def test_few_rows(
    dev: Device, rng: np.random.Generator, N: int, C: int, OC: int, form: str
) -> None:
    """The forms that a step of generation takes; `out` has columns that are not written."""
    inp, weight, bias, scale, shift = (
        dev.input(rng.standard_normal(shape)) for shape in ((N, C), (OC, C), (OC,), (C,), (C,))
    )
    out = dev.accumulated((N, OC + 5)) if form == "accumulate" else dev.output((N, OC + 5))
    before = dev.values(out)
    has_norm, has_bias = "norm" in form, form != "plain"
    linear_few_rows(
        out, inp, weight, bias if has_bias else None, norm=(scale, shift) if has_norm else None,
        gelu="gelu" in form, accumulate=form == "accumulate",
    )  # fmt: skip

    def formula(x: np.ndarray, w: np.ndarray, b: np.ndarray, *norm: np.ndarray) -> np.ndarray:
        if has_norm:
            normed = oracle.layernorm_forward(x, *norm)[0]
            # The op rounds it as LayerNorm would store it.
            x = round_to(normed, dev.floatX).astype(x.dtype) if x.dtype == np.float32 else normed
        product = x @ w.T + has_bias * b
        return oracle.gelu_forward(product) if "gelu" in form else product

    want, plain = twice(formula, *(dev.values(x) for x in (inp, weight, bias, scale, shift)))
    if form == "accumulate":
        want, plain = want + STARTED_AT, np.float32(STARTED_AT) + plain
    size = np.abs(want).max() * (2 if form == "accumulate" else 1)
    dev.agree("out", dev.get(out)[:, :OC], want, plain, C, size=size)
    np.testing.assert_array_equal(dev.values(out)[:, OC:], before[:, OC:])


def test_few_rows_of_a_head(
    dev: Device, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many outputs each warp has several, and the last ones have fewer."""
    monkeypatch.setattr(linear, "MANY_OUTPUTS", 1)
    inp, weight = dev.input(rng.standard_normal((2, 24))), dev.input(rng.standard_normal((35, 24)))
    for dtype in (dev.floatX, "float32"):  # logits are not rounded
        out = dev.output((2, 35), dtype)
        linear_few_rows(out, inp, weight, None)
        want, plain = twice(lambda x, w: x @ w.T, dev.values(inp), dev.values(weight))
        dev.agree("out", out, want, plain, 24, dtype)


@pytest.mark.parametrize(("lead", "C", "OC"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_backward(
    dev: Device, rng: np.random.Generator, lead: tuple[int, ...], C: int, OC: int, with_bias: bool
) -> None:
    dout, inp, weight = (
        dev.input(rng.standard_normal(s)) for s in ((*lead, OC), (*lead, C), (OC, C))
    )
    dinp, partials = dev.output((*lead, C)), dev.output(256 * OC, "float32")
    dweight, dbias = dev.accumulated((OC, C), "float32"), dev.accumulated(OC, "float32")
    with dev.unchecked():
        linear_backward(
            dinp, dweight, dbias if with_bias else None, dout, inp, weight, partials,
            precision=dev.precision,
        )  # fmt: skip
    arrays = [dev.values(x) for x in (dout, inp, weight)]
    want, plain = twice(linear_gradients, *arrays)
    N = inp.size // C
    dev.agree("dinp", dinp, want[0], plain[0], OC)
    dev.agree("dweight", dweight, want[1], plain[1], N, "float32")
    if with_bias:
        dev.agree("dbias", dbias, want[2], plain[2], N, "float32")
    else:
        np.testing.assert_array_equal(dev.values(dbias), STARTED_AT)


def linear_gradients(
    dout: np.ndarray, inp: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dinp, and dweight and dbias on top of STARTED_AT."""
    rows, columns = dout.reshape(-1, len(weight)), inp.reshape(-1, weight.shape[1])
    return dout @ weight, STARTED_AT + rows.T @ columns, STARTED_AT + rows.sum(0)


@pytest.mark.gpu
def test_tf32_reaches_every_product_of_a_gpu() -> None:
    if require_gpu().compute_capability < (8, 0):
        pytest.skip("TF32 needs compute capability 8.0")
    dev, rng = make_device("cuda", "float32"), np.random.default_rng(4)
    inp, weight, dout = (dev.input(rng.standard_normal((256, 256))) for _ in range(3))
    x, w, dy = (dev.values(array) for array in (inp, weight, dout))
    for precision in (FP32, TF32):
        out, dinp, dweight = (dev.array(np.zeros((256, 256))) for _ in range(3))
        linear_forward(out, inp, weight, None, precision=precision)
        linear_backward(dinp, dweight, None, dout, inp, weight, None, precision=precision)
        pairs = ((out, x @ w.T), (dinp, dy @ w), (dweight, dy.T @ x))
        errors = [np.abs(dev.values(got) - want).max() for got, want in pairs]
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
    # GELU may take the sums before or after they are rounded to floatX.
    want_out, plain_out = oracle.gelu_forward(want), oracle.gelu_forward(plain)
    size, rounding = np.abs(want).max(), EPSILON[dev.floatX]
    dev.agree("out", out, want_out, plain_out, C, size=size, relative=rounding)


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
    arrays = [dev.values(x) for x in (dout, inp, weight)]
    want, plain = twice(linear_gradients, *arrays)
    dinp, before = want[0], dev.values(hidden)
    want_dhidden = oracle.gelu_backward(dinp, before)
    plain_dhidden = oracle.gelu_backward(plain[0], before.astype(np.float32))
    N, rounding = inp.size // C, EPSILON[dev.floatX]
    dev.agree(
        "dhidden", dhidden, want_dhidden, plain_dhidden, OC,
        size=np.abs(dinp).max(), relative=rounding,
    )  # fmt: skip
    dev.agree("dweight", dweight, want[1], plain[1], N, "float32")
    dev.agree("dbias", dbias, want[2], plain[2], N, "float32")
    # The rows are summed before or after they are rounded to floatX.
    rows = dev.values(dhidden).reshape(-1, C)
    want_sums, size = STARTED_AT + rows.sum(0), STARTED_AT + np.abs(rows).sum(0).max()
    dev.agree("sums", sums, want_sums, want_sums, N, "float32", size=size, relative=rounding)
