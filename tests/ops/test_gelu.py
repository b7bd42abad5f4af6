import numpy as np
import pytest
from support.devices import STARTED_AT, Device, twice

from cupygpt.errors import KernelError
from cupygpt.kernels.launch import num_packs
from cupygpt.lab import oracle
from cupygpt.ops.gelu import gelu_backward, gelu_bias_backward, gelu_forward

# One pack, no multiple of a block, more than one block of threads.
SIZES = [8, 24, 4 * 2056]


def inputs(rng: np.random.Generator, size: int) -> np.ndarray:
    """Random numbers with the far tails and zero among them."""
    values = 3.0 * rng.standard_normal(size)
    values[:8] = [0.0, -0.0, 1.0, -1.0, 12.0, -12.0, 40.0, -40.0]
    return values


@pytest.mark.parametrize("size", SIZES)
def test_forward(dev: Device, rng: np.random.Generator, size: int) -> None:
    inp, out = dev.input(inputs(rng, size)), dev.output(size)
    gelu_forward(out, inp)
    dev.agree("out", out, *twice(oracle.gelu_forward, dev.values(inp)), n=1)


@pytest.mark.parametrize("size", SIZES)
def test_backward(dev: Device, rng: np.random.Generator, size: int) -> None:
    inp, dinp = dev.input(inputs(rng, size)), dev.array(rng.standard_normal(size))
    want, plain = twice(oracle.gelu_backward, dev.values(dinp), dev.values(inp))
    out = dev.output(size)
    gelu_forward(out, inp)
    gelu_backward(dinp, inp, out)
    dev.agree("dinp", dinp, want, plain, n=1)


# (N, OC): one row; rows in several rounds and chunks; columns of several blocks.
@pytest.mark.parametrize("shape", [(1, 8), (300, 40), (37, 1056)])
def test_backward_with_bias(dev: Device, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    N, OC = shape
    inp = dev.input(inputs(rng, N * OC).reshape(shape))
    dinp, dbias = dev.array(rng.standard_normal(shape)), dev.accumulated(OC, "float32")
    want, plain = twice(oracle.gelu_backward, dev.values(dinp), dev.values(inp))
    out = dev.output(shape)
    gelu_forward(out, inp)
    gelu_bias_backward(dinp, dbias, inp, out, dev.output(256 * OC, "float32"))
    dev.agree("dinp", dinp, want, plain, n=16)  # NumPy saves an exp
    dev.agree(
        "dbias", dbias, STARTED_AT + want.sum(axis=0),
        np.float32(STARTED_AT) + plain.sum(axis=0), N, "float32",
    )  # fmt: skip


def test_odd_sizes_are_refused_by_kernels() -> None:
    with pytest.raises(KernelError, match="5 elements: kernels need a multiple of 4"):
        num_packs(np.zeros(5, np.float32))
