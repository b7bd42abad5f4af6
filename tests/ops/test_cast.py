import numpy as np
import pytest
from support.devices import Device, round_to

from cupygpt.errors import KernelError
from cupygpt.ops.cast import cast_to_bfloat16

SPECIAL = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, np.inf, -np.inf, 3.3961775e38]
"""Exact values, ties to even in both directions, and what rounds up to infinity."""


@pytest.mark.parametrize("size", [8, 2056])
def test_cast_to_bfloat16(dev: Device, rng: np.random.Generator, size: int) -> None:
    values = rng.standard_normal(size).astype(np.float32)
    values[:8] = SPECIAL
    narrow = dev.array(np.zeros(size), "bfloat16")
    cast_to_bfloat16(narrow, dev.input(values, "float32"))
    np.testing.assert_array_equal(dev.values(narrow), round_to(values, "bfloat16"))


def test_nan_stays_nan(dev: Device) -> None:
    narrow = dev.array(np.zeros(8), "bfloat16")
    cast_to_bfloat16(narrow, dev.input(np.full(8, np.nan), "float32"))
    assert np.isnan(dev.values(narrow)).all()


def test_odd_sizes_are_refused_by_kernels(dev: Device) -> None:
    wide, narrow = dev.input(np.ones(5), "float32"), dev.array(np.zeros(5), "bfloat16")
    if dev.name == "cpu":
        cast_to_bfloat16(narrow, wide)
        assert dev.values(narrow).tolist() == [1.0] * 5
        return
    with pytest.raises(KernelError, match="cast of 5 to 5 elements"):
        cast_to_bfloat16(narrow, wide)
