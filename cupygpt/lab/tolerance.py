"""How far a result may lie from the exact one: the one rule of all tests.

Three roundings are allowed, and nothing else:

- the rounding of the result to its dtype,
- the roundings inside a float32 sum of n terms: in any order about sqrt(n) units in the last place
  of the sum of their absolute values. A tensor core cuts its sums off where others round, which
  counts as four times the terms,
- what the same formula loses in plain float32 on the same inputs, twice: where a formula subtracts
  two numbers of nearly the same size, or takes exp of a large one, any float32 version loses that.
"""

import math
from typing import Any

import numpy as np

from cupygpt.emulator.arrays import never_written

EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7}
"""The unit in the last place of 1, by dtype."""

TF32_PRODUCT = 2.0**-9
"""Relative error of a product of two operands that are rounded or cut off to TF32."""


def limit(
    dtype: str,
    terms: int,
    size: Any,
    *,
    summed: Any = None,
    plain_error: float = 0.0,
    relative: float = 0.0,
) -> Any:
    """The largest error that these roundings explain: a number, or one for each element.

    Args:
        dtype: how the result is stored.
        terms: the number of terms of its sums.
        size: absolute value of the result, as one number or for each element.
        summed: sum of the absolute values of the terms; `size` if None.
        plain_error: error of the same formula in plain float32.
        relative: further relative error of the terms, such as TF32_PRODUCT.
    """
    summed = size if summed is None else summed
    sums = (math.sqrt(terms) * EPSILON["float32"] + relative) * summed
    return EPSILON[dtype] * size + sums + 2.0 * plain_error


def assert_close(name: str, found: np.ndarray, want: np.ndarray, allowed: Any) -> None:
    """Every element of `found` is within `allowed` of `want`; NaN is not.

    The message names the worst element: one that was never written, one that is NaN, or the one
    that is furthest off.
    """
    assert found.shape == want.shape, f"{name}: {found.shape} for {want.shape}"
    error = np.abs(np.asarray(found, np.float64) - want)
    good = error <= allowed
    if good.all():
        return
    missing = never_written(found) & ~good
    if missing.any():
        worst = _first(missing)
        others = (~good & ~missing).sum()
        more = f"; others that are off: {others}" if others else ""
        raise AssertionError(
            f"{_element(name, worst)} was never written, or added to what stood there; want "
            f"{want[worst]:.6g}; so are {missing.sum()} of {missing.size} elements{more}"
        )
    worst = np.unravel_index(np.argmax(np.where(good, 0.0, error)), error.shape)
    most = np.broadcast_to(allowed, error.shape)[worst]
    raise AssertionError(
        f"{_element(name, worst)}: got {found[worst]:.6g}, want {want[worst]:.6g}, "
        f"off by {error[worst]:.2e}, allowed error {most:.2e}; "
        f"{(~good).sum()} of {good.size} elements are off"
    )


def _first(mask: np.ndarray) -> tuple[Any, ...]:
    return np.unravel_index(np.argmax(mask), mask.shape)


def _element(name: str, index: tuple[Any, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]"
