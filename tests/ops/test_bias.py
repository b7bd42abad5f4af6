import numpy as np
import pytest
from support.devices import STARTED_AT, Device, twice

from cupygpt.lab import oracle
from cupygpt.ops.bias import bias_backward

# (N, OC): one row; more rows than a chunk; many columns; more columns than a block's threads.
SHAPES = [(1, 8), (7, 24), (300, 128), (5, 2304)]


@pytest.mark.parametrize("shape", SHAPES)
def test_backward(dev: Device, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    N, OC = shape
    dout, dbias = dev.input(rng.standard_normal(shape)), dev.accumulated(OC, "float32")
    bias_backward(dbias, dout, dev.output(256 * OC, "float32"))
    want, plain = twice(oracle.column_sums, dev.values(dout))
    dev.agree("dbias", dbias, STARTED_AT + want, np.float32(STARTED_AT) + plain, N, "float32")
