"""Offsets beyond 2^31 elements: what the last row gets is what it gets alone."""

from typing import Any

import numpy as np
import pytest
from support.gpu import require_cupy, require_gpu

from cupygpt.ops.classifier import classifier
from cupygpt.ops.gelu import gelu_forward
from cupygpt.ops.layernorm import layernorm_forward

LAST = slice(-2, None)

pytestmark = [pytest.mark.gpu, pytest.mark.gpu_alone]


@pytest.fixture
def memory() -> Any:
    """CuPy, on a GPU with 12 GiB free; what the test took is given back."""
    device = require_gpu()
    if device.free_bytes() < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    cupy = require_cupy()
    yield cupy
    cupy.get_default_memory_pool().free_all_blocks()


def large(memory: Any, columns: int) -> Any:
    """bfloat16 (N, columns) of over 2^31 elements; all ones, random in the last two rows."""
    array = memory.full((2**31 // columns + 3, columns), 0x3F80, np.uint16)
    bits = np.random.default_rng(7).integers(0x3E00, 0x4000, (2, columns))
    array[LAST] = memory.asarray(bits.astype(np.uint16))
    return array


def test_elementwise(memory: Any) -> None:
    inp = large(memory, 1024)
    out, alone = memory.zeros_like(inp), memory.zeros_like(inp[LAST])
    gelu_forward(out, inp)
    gelu_forward(alone, inp[LAST].copy())
    assert bool((out[LAST] == alone).all())
    assert bool((out[:-2] == out[0, 0]).all())


def test_rows(memory: Any) -> None:
    inp = large(memory, 768)
    N = len(inp)
    out, alone = memory.zeros_like(inp), memory.zeros_like(inp[LAST])
    weight, bias = inp[0].copy(), memory.zeros_like(inp[0])
    statistics = [memory.zeros(n, np.float32) for n in (N, N, 2, 2)]
    layernorm_forward(out, *statistics[:2], inp, weight, bias)
    layernorm_forward(alone, *statistics[2:], inp[LAST].copy(), weight, bias)
    assert bool((out[LAST] == alone).all())


def test_classifier(memory: Any) -> None:
    logits = large(memory, 50304)
    N = len(logits)
    alone, losses = logits[LAST].copy(), memory.zeros(N, np.float32)
    few = memory.zeros(2, np.float32)
    classifier(losses, logits, memory.full(N, 50256, np.int32), 50257, 1.0)
    classifier(few, alone, memory.full(2, 50256, np.int32), 50257, 1.0)
    assert bool((logits[LAST] == alone).all())
    assert bool((losses[LAST] == few).all())
    np.testing.assert_allclose(float(losses[0]), np.log(50257.0), rtol=1e-5)
