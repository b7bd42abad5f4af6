"""The rule of tolerance.py allows the roundings of a result, and no small error."""

import numpy as np
import pytest
from support.devices import Device, round_to, twice

from cupygpt.lab.tolerance import EPSILON, assert_close, limit

TERMS = [1, 64, 8192]


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(("dtype", "mistake"), [("float32", 1.0001), ("bfloat16", 1.05)])
def test_one_wrong_element_is_noticed(
    rng: np.random.Generator, terms: int, dtype: str, mistake: float
) -> None:
    want, plain = twice(product, *(rng.standard_normal(s) for s in ((20, terms), (terms, 30))))
    good = round_to(plain, dtype)
    Device("float32").agree("out", good, want, plain, terms, dtype)
    bad = good.copy()
    bad[np.unravel_index(np.abs(want).argmax(), want.shape)] *= mistake
    with pytest.raises(AssertionError, match=r"out on cpu .*; 1 of 600 elements are off"):
        Device("float32").agree("out", bad, want, plain, terms, dtype)


@pytest.mark.parametrize("dtype", EPSILON)
def test_nan_is_never_close(dtype: str) -> None:
    want, found = np.ones(3), np.array([1.0, np.nan, 1.0])
    with pytest.raises(AssertionError, match=r"out\[1\]: got nan, want 1"):
        assert_close("out", found, want, limit(dtype, 10, 1.0))


def test_another_shape_is_not_close() -> None:
    with pytest.raises(AssertionError, match=r"out: \(1, 3\) for \(3,\)"):
        assert_close("out", np.ones((1, 3)), np.ones(3), 1.0)


def test_any_order_of_a_float32_sum_is_allowed(rng: np.random.Generator) -> None:
    values = rng.standard_normal(100_000).astype(np.float32)
    forward, backward = np.float32(0), np.float32(0)
    for x, y in zip(values, values[::-1], strict=True):
        forward += x
        backward += y
    want = np.array(values.astype(np.float64).sum())
    allowed = limit("float32", values.size, abs(want), summed=np.abs(values).sum())
    for found in (forward, backward):
        assert_close("sum", np.array(found), want, allowed)
