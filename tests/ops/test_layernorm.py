import numpy as np
import pytest
from support.devices import PARALLEL_DEVICES, STARTED_AT, Device, twice

from cupygpt.kernels.launch import Multiprocessors
from cupygpt.lab import oracle
from cupygpt.ops.layernorm import (
    backward_launch,
    forward_launch,
    layernorm_backward,
    layernorm_forward,
    residual_layernorm_forward,
)

# (B, T, C): one row; fewer packs than a warp has lanes; many row groups; GPT-2's width; several
# warps per row, the last one partly idle (2056 in forward's bfloat16); a last pass not full.
SHAPES = [
    (1, 1, 8),
    (2, 3, 24),
    (3, 67, 128),
    (2, 9, 768),
    (1, 5, 1600),
    (1, 33, 776),
    (1, 3, 2056),
]
# Then rows with several packs per thread in backward, and rows too long for its shared memory.
BACKWARD_SHAPES = [*SHAPES, (1, 3, 4816), (1, 2, 16384)]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward(dev: Device, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    C = shape[-1]
    inp = dev.input(2.0 + rng.standard_normal(shape))
    weight, bias = dev.input(rng.standard_normal(C)), dev.input(rng.standard_normal(C))
    out = dev.output(shape)
    mean, rstd = dev.output(shape[:2], "float32"), dev.output(shape[:2], "float32")
    layernorm_forward(out, mean, rstd, inp, weight, bias)
    want, plain = twice(
        oracle.layernorm_forward, dev.values(inp), dev.values(weight), dev.values(bias)
    )
    dev.agree("out", out, want[0], plain[0], C)
    dev.agree("mean", mean, want[1], plain[1], C, "float32")
    dev.agree("rstd", rstd, want[2], plain[2], C, "float32")


def test_forward_of_a_constant_row(dev: Device) -> None:
    """Variance 0: epsilon alone keeps the result finite."""
    inp, ones = dev.input(np.full((1, 2, 24), 1.5)), dev.input(np.ones(24))
    out, mean, rstd = (
        dev.output((1, 2, 24)),
        dev.output((1, 2), "float32"),
        dev.output((1, 2), "float32"),
    )
    layernorm_forward(out, mean, rstd, inp, ones, ones)
    np.testing.assert_array_equal(dev.values(out), 1.0)
    np.testing.assert_allclose(dev.values(rstd), 1e-5**-0.5, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_residual_forward(
    dev: Device, rng: np.random.Generator, shape: tuple[int, int, int]
) -> None:
    C = shape[-1]
    inp1, inp2 = dev.input(rng.standard_normal(shape)), dev.input(rng.standard_normal(shape))
    weight, bias = dev.input(rng.standard_normal(C)), dev.input(rng.standard_normal(C))
    residual, out = dev.output(shape), dev.output(shape)
    mean, rstd = dev.output(shape[:2], "float32"), dev.output(shape[:2], "float32")
    residual_layernorm_forward(residual, out, mean, rstd, inp1, inp2, weight, bias)
    total = dev.values(inp1) + dev.values(inp2)
    dev.agree("residual", residual, total, total, 1)
    # From the residual as stored: backward sees no other.
    want, plain = twice(
        oracle.layernorm_forward, dev.values(residual), dev.values(weight), dev.values(bias)
    )
    dev.agree("out", out, want[0], plain[0], C)
    dev.agree("mean", mean, want[1], plain[1], C, "float32")
    dev.agree("rstd", rstd, want[2], plain[2], C, "float32")


@pytest.mark.parametrize("with_sum", [False, True])
@pytest.mark.parametrize("shape", BACKWARD_SHAPES)
def test_backward(
    dev: Device, rng: np.random.Generator, shape: tuple[int, int, int], with_sum: bool
) -> None:
    B, T, C = shape
    inp, dout = dev.input(2.0 + rng.standard_normal(shape)), dev.input(rng.standard_normal(shape))
    weight = dev.input(rng.standard_normal(C))
    values = dev.values(inp)
    mean = dev.input(values.mean(axis=-1), "float32")
    rstd = dev.input((values.var(axis=-1) + 1e-5) ** -0.5, "float32")
    dinp = dev.accumulated(shape)
    dweight, dbias = dev.accumulated(C, "float32"), dev.accumulated(C, "float32")
    dsum = dev.accumulated(C, "float32") if with_sum else None
    partials = dev.output(1024 * C, "float32")
    layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, partials, dsum)
    want, plain = twice(oracle.layernorm_backward, dev.values(dout), values, dev.values(weight))
    want = [STARTED_AT + x for x in want]
    plain = [np.float32(STARTED_AT) + x for x in plain]
    dev.agree("dinp", dinp, want[0], plain[0], C)
    dev.agree("dweight", dweight, want[1], plain[1], B * T, "float32")
    dev.agree("dbias", dbias, want[2], plain[2], B * T, "float32")
    if dsum is not None:
        total, plain_total = (x[0].reshape(-1, C).sum(axis=0) for x in (want, plain))
        dev.agree("dsum", dsum, STARTED_AT + total, STARTED_AT + plain_total, B * T, "float32")


@pytest.mark.parametrize("dev", PARALLEL_DEVICES, indirect=True)
def test_backward_repeats_bit_for_bit(dev: Device, rng: np.random.Generator) -> None:
    shape, C = (2, 150, 24), 24
    inp, dout = dev.input(rng.standard_normal(shape)), dev.input(rng.standard_normal(shape))
    weight, ones = dev.input(np.ones(C)), dev.input(np.ones(shape[:2]), "float32")
    results = []
    for _ in range(2):
        outputs = [dev.accumulated(shape), *(dev.accumulated(C, "float32") for _ in range(2))]
        partials = dev.output(1024 * C, "float32")
        layernorm_backward(*outputs, dout, inp, weight, ones, ones, partials)
        results.append(b"".join(dev.get(x).tobytes() for x in outputs))
    assert results[0] == results[1]


@pytest.mark.parametrize("per_pack", [4, 8])
@pytest.mark.parametrize("C", [8, 128, 768, 776, 1600, 12288, 40000])
def test_forward_threads_cover_the_row(C: int, per_pack: int) -> None:
    launch = forward_launch(3, C, per_pack)
    threads = 32 * launch.defines["WARPS_PER_ROW"]
    packs = launch.defines["PACKS_PER_THREAD"]
    assert threads <= 1024
    assert (packs - 1) * threads * per_pack < C <= packs * threads * per_pack
    assert launch.grid * launch.block >= 3 * threads


@pytest.mark.parametrize("shared_kb", [64, 99, 227])
@pytest.mark.parametrize("per_pack", [4, 8])
@pytest.mark.parametrize("C", [8, 24, 128, 768, 776, 1600, 12288, 40000])
def test_backward_threads_cover_the_row(C: int, per_pack: int, shared_kb: int) -> None:
    launch = backward_launch(1000, C, per_pack, Multiprocessors(4, 228 << 10, shared_kb << 10))
    per_row, rows = launch.defines["THREADS_PER_ROW"], launch.defines["ROWS_PER_PASS"]
    packs = launch.defines["PACKS_PER_THREAD"]
    assert rows >= 1
    assert launch.block == per_row * rows
    assert launch.block % 32 == 0
    assert launch.block <= 896
    assert per_row % 32 == 0 or 32 % per_row == 0
    assert (packs - 1) * per_row * per_pack < C <= packs * per_row * per_pack
    assert 48 * packs * launch.block * launch.defines["STAGES"] <= launch.shared_bytes
    if per_pack == 4 or shared_kb > 64:  # bfloat16 needs an Ampere GPU: those have 99 KB
        assert launch.shared_bytes < shared_kb << 10
        assert rows == 1 or 12 * C * rows <= launch.shared_bytes
