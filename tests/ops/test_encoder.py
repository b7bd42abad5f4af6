import numpy as np
import pytest
from support.devices import STARTED_AT, Device, twice

from cupygpt.data.loader import token_order
from cupygpt.lab import oracle
from cupygpt.ops.encoder import encoder_backward, encoder_decode, encoder_forward

# (B, T, C, V, Vp): one token; T = 1; few rows; several blocks of entries and of columns.
SHAPES = [
    (1, 1, 8, 65, 128),
    (5, 1, 24, 65, 128),
    (2, 3, 128, 257, 384),
    (3, 67, 264, 257, 384),
    (1, 4, 768, 50257, 50304),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward(
    dev: Device, rng: np.random.Generator, shape: tuple[int, int, int, int, int]
) -> None:
    B, T, C, V, Vp = shape
    tokens = rng.integers(0, V, (B, T))
    wte, wpe = dev.input(rng.standard_normal((Vp, C))), dev.input(rng.standard_normal((T + 2, C)))
    out = dev.output((B, T, C))
    encoder_forward(out, dev.input(tokens, "int32"), wte, wpe)
    want = oracle.encoder_forward(tokens, dev.values(wte), dev.values(wpe))
    dev.agree("out", out, want, want, 1)


@pytest.mark.parametrize(("N", "C"), [(1, 8), (3, 24), (5, 768)])
def test_tokens_at_any_positions(dev: Device, rng: np.random.Generator, N: int, C: int) -> None:
    tokens, positions = rng.integers(0, 65, N), rng.integers(0, 9, N)
    wte, wpe = dev.input(rng.standard_normal((128, C))), dev.input(rng.standard_normal((9, C)))
    out = dev.output((N, C))
    where = dev.input(tokens, "int32"), dev.input(positions, "int32")
    encoder_decode(out, *where, wte, wpe)
    want = dev.values(wte)[tokens] + dev.values(wpe)[positions]
    dev.agree("out", out, want, want, 1)


def check_backward(
    dev: Device, rng: np.random.Generator, tokens: np.ndarray, C: int, Vp: int
) -> None:
    B, T = tokens.shape
    dout = dev.input(rng.standard_normal((B, T, C)))
    dwte, dwpe = dev.accumulated((Vp, C), "float32"), dev.accumulated((T + 2, C), "float32")
    device_tokens = dev.input(tokens, "int32")
    order = dev.input(token_order(tokens), "int32")
    sums = dev.output((-(-B * T // 32), C), "float32")
    encoder_backward(dwte, dwpe, dout, device_tokens, order, sums)
    want, plain = twice(lambda d: oracle.encoder_backward(tokens, d, Vp, T + 2), dev.values(dout))
    heaviest = int(np.bincount(tokens.ravel()).max())
    for name, got, w, p, n in zip(
        ("dwte", "dwpe"), (dwte, dwpe), want, plain, (heaviest, B), strict=True
    ):
        dev.agree(name, got, STARTED_AT + w, np.float32(STARTED_AT) + p, n, "float32")


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_backward(
    dev: Device, rng: np.random.Generator, shape: tuple[int, int, int, int, int]
) -> None:
    B, T, C, V, Vp = shape
    check_backward(dev, rng, rng.integers(0, V, (B, T)), C, Vp)


@pytest.mark.parametrize(
    ("group_sizes", "C"),
    [
        ([32, 1], 24),
        ([31, 33, 3], 24),  # the second group begins in a window and fills the next: long
        ([31, 32, 3], 24),  # all but the last entry of the next: short
        ([10, 200, 32, 32, 31], 24),
        ([5, 91, 32, 60], 24),  # a long group ends where a window does, others begin
        ([700, 5, 1200], 24),  # over more windows than a warp has lanes
        ([300, 5], 200),  # the second slice of columns is not full
    ],
)
def test_backward_of_heavy_tokens(
    dev: Device, rng: np.random.Generator, group_sizes: list[int], C: int
) -> None:
    """Token groups around the windows of 32 entries that warps have."""
    tokens = np.repeat(np.arange(len(group_sizes)), group_sizes)
    check_backward(dev, rng, rng.permutation(tokens)[None], C, 128)


def test_token_order_is_stable() -> None:
    order = token_order(np.array([[5, 1, 5], [0, 1, 5]], np.int32))
    assert order.dtype == np.int32
    assert order.tolist() == [3, 1, 4, 0, 2, 5]
