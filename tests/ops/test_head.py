"""The output head, general and fused, against the float64 oracle on every device.

The fused kernels run where TF32 is allowed, on float32 arrays that are not on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import pytest
from devices import DEVICES, EPSILON, STARTED_AT, Device, round_to
from numpy.random import Generator

from cupygpt.ops import head as head_module
from cupygpt.ops.head import HeadGradients, head, is_fused

# float32 only: in bfloat16 the head is made of ops that have tests of their own.
FLOAT32_DEVICES = [d for d in DEVICES if d.values[0][1] == "float32"]
KERNEL_DEVICES = [d for d in FLOAT32_DEVICES if d.values[0][0] != "cpu"]
on_float32 = pytest.mark.parametrize("dev", FLOAT32_DEVICES, indirect=True)

DLOSS = 1.0 / 48

# N, C, V, Vp: one row; a partial tile of rows, of every width, with and without padding columns;
# two tiles of rows, the second of them partial; a tile of columns that is all padding.
SHAPES = [
    (1, 32, 65, 128),
    (37, 64, 257, 384),
    (33, 96, 128, 128),
    (37, 128, 300, 384),
    (130, 32, 257, 384),
    (5, 32, 65, 256),
]


@dataclass
class Case:
    """The inputs of one call, and what they are in float64."""

    lnf: Any
    wte: Any
    targets: Any
    V: int
    values: tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Result:
    losses: Any
    dlnf: Any
    dwte: Any

    def bits(self, dev: Device) -> list[bytes]:
        return [dev.get(array).tobytes() for array in (self.losses, self.dlnf, self.dwte)]


def make_case(
    dev: Device, rng: Generator, N: int, C: int, V: int, Vp: int, spread: float = 2.0
) -> Case:
    """Some confident rows and some not; the padding rows of wte hold large numbers."""
    lnf, wte = rng.standard_normal((N, C)), rng.standard_normal((Vp, C))
    wte *= spread / math.sqrt(C)
    wte[V:] *= 100.0
    targets = rng.integers(0, V, N)
    targets[0] = V - 1
    if N > 2:
        targets[1], targets[2] = -1, 0
    arrays = dev.input(lnf), dev.input(wte)
    values = dev.values(arrays[0]), dev.values(arrays[1]), targets
    return Case(*arrays, dev.input(targets, "int32"), V, values)


def run(dev: Device, case: Case, *, tf32: bool, chunk: int | None = None) -> Result:
    """All rows in chunks of `chunk`; scratch starts as NaN."""
    (N, C), Vp = case.values[0].shape, len(case.values[1])
    result = Result(dev.accumulated(N, "float32"), dev.output((N, C)), dev.accumulated((Vp, C)))
    rows = chunk or N
    logits, statistics = dev.output((rows, Vp)), dev.output(N * C)
    sums = dev.output(4 * N * C)
    for start in range(0, N, rows):
        part = slice(start, min(start + rows, N))
        gradients = HeadGradients(result.dlnf[part], result.dwte, DLOSS, sums)
        head(
            result.losses[part], gradients, case.lnf[part], case.wte, case.targets[part],
            logits[: part.stop - part.start], statistics, case.V, tf32=tf32,
        )  # fmt: skip
    return result


def rounded_tf32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to TF32's 10 bits of fraction, to nearest."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def reference(
    case: Case, dtype: type, rounded: Callable[[np.ndarray], np.ndarray] = np.copy
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """losses, dlnf and dwte in `dtype`; `rounded` is applied to the operands of products."""
    lnf, wte = (rounded(values.astype(dtype)) for values in case.values[:2])
    losses, dlogits = oracle.classifier(lnf @ wte.T, case.values[2], case.V, 1.0)
    dlogits = rounded(dlogits)
    return losses, dtype(DLOSS) * (dlogits @ wte), dtype(DLOSS) * (dlogits.T @ lnf)


def check(dev: Device, case: Case, result: Result, *, tf32: bool) -> None:
    """As near to the oracle as the roundings explain.

    The same formulas in float32, their operands rounded to TF32 where the variant does so, show
    what error the roundings make; twice the largest of it is allowed, and that of sums in any
    order. A confident row's loss hangs on one logit, of C products.
    """
    N, C = case.values[0].shape
    fused = tf32 and dev.name != "cpu"
    assert is_fused(case.lnf, tf32=tf32) == fused
    wants = reference(case, np.float64)
    plains = reference(case, np.float32, rounded_tf32 if fused else np.copy)
    found = (
        dev.values(result.losses) - STARTED_AT,
        dev.values(result.dlnf),
        dev.values(result.dwte) - STARTED_AT,
    )
    # Beside what was there before, an accumulated value is rounded as a value of that size.
    for name, got, want, plain, terms, before in zip(
        ("losses", "dlnf", "dwte"), found, wants, plains, (C, case.V, N), (3.0, 0.0, 3.0),
        strict=True,
    ):  # fmt: skip
        size = np.abs(want).max()
        noise = EPSILON["float32"] * (math.sqrt(terms) * size + size + before)
        limit = 2.0 * np.abs(round_to(plain, "float32") - want).max() + noise
        error = np.abs(got - want).max()
        assert error <= limit, f"{name} on {dev.name}: {error:.2e} over {limit:.2e}"
    ignored = np.flatnonzero(case.values[2] < 0)
    assert not found[0][ignored].any()
    assert not found[1][ignored].any()
    assert not found[2][case.V :].any()


@on_float32
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(("N", "C", "V", "Vp"), SHAPES)
def test_head(dev: Device, rng: Generator, N: int, C: int, V: int, Vp: int, *, tf32: bool) -> None:
    case = make_case(dev, rng, N, C, V, Vp)
    check(dev, case, run(dev, case, tf32=tf32), tf32=tf32)


@on_float32
@pytest.mark.parametrize("tf32", [False, True])
def test_rows_in_chunks(dev: Device, rng: Generator, *, tf32: bool) -> None:
    """dwte accumulates over the chunks, the last of which is smaller."""
    case = make_case(dev, rng, 45, 32, 130, 256)
    check(dev, case, run(dev, case, tf32=tf32, chunk=20), tf32=tf32)


@on_float32
@pytest.mark.parametrize("tf32", [False, True])
def test_evaluation(dev: Device, rng: Generator, *, tf32: bool) -> None:
    """The losses are those of training."""
    N, C, V, Vp = 37, 64, 257, 384
    case = make_case(dev, rng, N, C, V, Vp)
    trained = dev.values(run(dev, case, tf32=tf32).losses)
    losses = dev.accumulated(N, "float32")
    # The fused kernels do not even write the logits.
    fused = is_fused(case.lnf, tf32=tf32)
    nans = np.full((N, Vp), np.nan)
    logits = dev.input(nans) if fused else dev.array(nans)
    head(losses, None, case.lnf, case.wte, case.targets, logits, dev.output(N * C), V, tf32=tf32)
    assert np.abs(dev.values(losses) - trained).max() <= 2 * EPSILON["float32"] * trained.max()


@on_float32
@pytest.mark.parametrize("tf32", [False, True])
def test_logits_far_beyond_the_range_of_exp(dev: Device, rng: Generator, *, tf32: bool) -> None:
    case = make_case(dev, rng, 37, 32, 257, 384, spread=100.0)
    lnf, wte, _ = case.values
    assert (lnf @ wte[:257].T).max() > 200.0  # exp of it overflows float32
    check(dev, case, run(dev, case, tf32=tf32), tf32=tf32)


@on_float32
@pytest.mark.parametrize("tf32", [False, True])
def test_a_run_repeats_bit_for_bit(dev: Device, rng: Generator, *, tf32: bool) -> None:
    case = make_case(dev, rng, 130, 64, 300, 384)
    assert run(dev, case, tf32=tf32).bits(dev) == run(dev, case, tf32=tf32).bits(dev)


@pytest.mark.parametrize("dev", KERNEL_DEVICES, indirect=True)
def test_one_split_of_the_columns(
    dev: Device, rng: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many rows a block walks over several tiles of columns, and dlnf is one part."""
    monkeypatch.setattr(head_module, "BUSY_BLOCKS", 1)
    case = make_case(dev, rng, 37, 64, 600, 640)
    check(dev, case, run(dev, case, tf32=True), tf32=True)


@on_float32
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("operand", ["lnf", "wte"])
def test_nan_gives_a_nan_loss(dev: Device, rng: Generator, operand: str, *, tf32: bool) -> None:
    """Otherwise a run that went wrong would go on. NaN as kernels make it: all bits set."""
    N, C, V, Vp = 5, 32, 65, 128
    values = {"lnf": rng.standard_normal((N, C)), "wte": rng.standard_normal((Vp, C))}
    values[operand][3, 7] = np.uint32(0x7FFFFFFF).view(np.float32)
    losses = dev.accumulated(N, "float32")
    head(
        losses, None, dev.input(values["lnf"]), dev.input(values["wte"]),
        dev.input(np.zeros(N), "int32"), dev.output((N, Vp)), dev.output(N * C), V, tf32=tf32,
    )  # fmt: skip
    hit = np.arange(N) == 3 if operand == "lnf" else np.ones(N, bool)
    np.testing.assert_array_equal(np.isnan(dev.values(losses)), hit)


@on_float32
@pytest.mark.parametrize("tf32", [False, True])
def test_other_shapes_take_the_general_path(dev: Device, *, tf32: bool) -> None:
    for C in (8, 48, 160, 256):
        assert not is_fused(dev.array(np.zeros((2, C))), tf32=tf32)
    assert not is_fused(dev.array(np.zeros((2, 128)), "bfloat16"), tf32=tf32)
    assert is_fused(dev.array(np.zeros((2, 3, 96))), tf32=tf32) == (tf32 and dev.name != "cpu")
