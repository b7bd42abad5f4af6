"""Kernels without bugs agree with NumPy in every mode of the emulator."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from emulator import sample_cases
from emulator.cases import CASES
from emulator.sample_cases import CUDA_DIR, bf16_bits, bf16_values, random

from cupygpt.emulator.arrays import emulated, emulated_empty
from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.emulate import EmulatedModule

ALL_CASES = [
    f for file in sorted(p.name for p in sample_cases.SAMPLES.glob("*.cu")) for f in CASES[file]
]


@pytest.mark.parametrize("run", ALL_CASES)
def test_clean_sample_agrees_with_numpy(run: Callable[[], None]) -> None:
    run()


MODES = {
    "checked": {},
    "unchecked": {"mode": Mode.UNCHECKED},
    "counted": {"mode": Mode.COUNTED},
    "portable": {"portable_switch": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same(samples: Path, mode: str) -> None:
    module = EmulatedModule(samples / "reduction.cu", (), **MODES[mode])
    mean, var, inp = emulated_empty(5), emulated_empty(5), random(1, 5, 1000)
    module.get_function("moments")((5,), (1024,), (mean, var, inp, np.int32(1000)))
    np.testing.assert_allclose(mean, np.asarray(inp).mean(1), atol=1e-6)
    np.testing.assert_allclose(var, np.asarray(inp).var(1), rtol=1e-5)


def test_float_functions(samples: Path) -> None:
    x = np.linspace(0.05, 3.0, 50, dtype=np.float32)
    out = emulated_empty((10, 50))
    kernel = EmulatedModule(samples / "intrinsics.cu").get_function("float_functions")
    kernel((2,), (32,), (out, emulated(x), np.int32(50)))
    erf = np.array([math.erf(v) for v in x.astype(float)])
    wide = x.astype(np.float64)
    want = [
        np.exp(wide),
        wide**-0.5,
        np.tanh(wide),
        1 / wide,
        2**wide,
        np.log(wide),
        np.maximum(wide, 1),
        np.clip(wide, 0, 1),
        erf,
        np.minimum(wide, 1),
    ]
    np.testing.assert_allclose(out, want, rtol=3e-7, atol=1e-7)


def test_integer_functions(samples: Path, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**32, 64, dtype=np.uint32)
    x[:2] = 0, 2**32 - 1
    out = emulated_empty((7, 64), np.uint32)
    kernel = EmulatedModule(samples / "intrinsics.cu").get_function("integer_functions")
    kernel((1,), (64,), (out, emulated(x), np.int32(64)))
    ints = [int(v) for v in x]
    want = [
        [v * 0xCD9E8D57 >> 32 for v in ints],
        [v.bit_count() for v in ints],
        [32 - v.bit_length() for v in ints],
        [int(f"{v:032b}"[::-1], 2) for v in ints],
        [v & 0x7F7FFFFF for v in ints],
        [(v << 8 | v >> 24) & 0xFFFFFFFF for v in ints],
        [int.from_bytes(v.to_bytes(4, "little"), "big") for v in ints],
    ]
    np.testing.assert_array_equal(out, np.array(want, np.uint32))


def test_warp_functions(samples: Path) -> None:
    out = emulated_empty((9, 32), np.uint32)
    EmulatedModule(samples / "intrinsics.cu").get_function("warp_functions")((1,), (32,), (out,))
    lane = np.arange(32)
    want = [
        np.full(32, 30),
        np.where(lane >= 2, lane - 2, lane),
        np.where(lane < 30, lane + 2, lane),
        lane ^ 5,
        np.where(lane % 8 < 7, lane + 1, lane),
        np.full(32, sum(1 << i for i in range(0, 32, 3))),
        np.full(32, 1),
        np.full(32, 496),
        np.full(32, 31),
    ]
    np.testing.assert_array_equal(out, np.array(want, np.uint32))


def test_atomics(samples: Path) -> None:
    ints, uints = emulated(np.zeros(3, np.int32)), emulated(np.array([0, 5, 0], np.uint32))
    longs, floats = emulated(np.zeros(2, np.uint64)), emulated(np.zeros(1, np.float32))
    kernel = EmulatedModule(samples / "intrinsics.cu").get_function("atomic_functions")
    kernel((3,), (32,), (ints, uints, longs, floats))
    assert [int(v) for v in ints] == [96 * 95 // 2, 95, -95]
    assert [int(v) for v in uints] == [96, 9, 4]
    assert [int(v) for v in longs] == [96 << 33, 95 << 40]
    assert float(floats[0]) == 48.0


def test_three_dimensional_launch(samples: Path) -> None:
    where = emulated_empty((2 * 3 * 4, 4 * 2 * 3, 6), np.int32)
    kernel = EmulatedModule(samples / "intrinsics.cu").get_function("coordinates")
    kernel((2, 3, 4), (4, 2, 3), (where,))
    bz, by, bx, tz, ty, tx = np.indices((4, 3, 2, 3, 2, 4)).reshape(6, 24, 24)
    np.testing.assert_array_equal(where, np.stack([tx, ty, tz, bx, by, bz], -1))


def test_scalars_of_every_type(samples: Path) -> None:
    out = emulated_empty(9, np.float64)
    kernel = EmulatedModule(samples / "intrinsics.cu").get_function("all_scalars")
    scalars = (
        np.int32(-5),
        np.uint32(2**32 - 1),
        np.int64(-(2**40)),
        np.uint64(2**50),
        np.float32(0.1),
        np.float64(0.1),
        np.bool_(True),  # noqa: FBT003
    )
    kernel((1,), (1,), (out, *scalars, None))
    want = [-5, 2**32 - 1, -(2**40), 2**50, float(np.float32(0.1)), 0.1, 1, 1, 1000]
    assert [float(v) for v in out] == want


def test_bfloat16_conversions_round_to_nearest_even(
    samples: Path, rng: np.random.Generator
) -> None:
    x = rng.standard_normal(1000).astype(np.float32)
    x[:6] = [1 + 2**-8, 1 + 3 * 2**-8, np.inf, -0.0, 3.4e38, 1e-40]  # ties, overflow, subnormal
    options = ["-DfloatX=__nv_bfloat16"]
    module = EmulatedModule(samples / "conversions.cu", options)
    out, back = emulated_empty(1000, np.uint16), emulated_empty(1000)
    module.get_function("to_floatX")((4,), (256,), (out, emulated(x), np.int32(1000)))
    np.testing.assert_array_equal(out, bf16_bits(x))
    module.get_function("from_floatX")((4,), (256,), (back, out, np.int32(1000)))
    np.testing.assert_array_equal(back, bf16_values(bf16_bits(x)))
    packed = emulated_empty(1000, np.uint16)
    module.get_function("double_packed")((1,), (128,), (packed, out, np.int32(1000)))
    np.testing.assert_array_equal(packed, bf16_bits(2 * bf16_values(bf16_bits(x))))


def test_half_conversions_match_numpy(samples: Path, rng: np.random.Generator) -> None:
    x = (rng.standard_normal(2000) * 10.0 ** rng.integers(-9, 5, 2000)).astype(np.float32)
    x[:6] = [65519.9, 65520.0, 2**-24, 2**-25, -np.inf, 6.1e-5]
    out, back = emulated_empty(2000, np.float16), emulated_empty(2000)
    module = EmulatedModule(samples / "conversions.cu", ["-DfloatX=float"])
    module.get_function("half_round_trip")((8,), (256,), (out, emulated(x), back, np.int32(2000)))
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(back, want.astype(np.float32))


def test_dynamic_shared_memory_beyond_48_kib(samples: Path) -> None:
    bins = 50_000
    values = np.arange(bins, dtype=np.int32)
    counts = emulated_empty(bins, np.uint32)
    kernel = EmulatedModule(samples / "reduction.cu").get_function("histogram")
    args = (counts, emulated(values), np.int32(bins), np.int32(bins))
    kernel.max_dynamic_shared_size_bytes = 4 * bins
    kernel((1,), (256,), args, shared_mem=4 * bins)
    np.testing.assert_array_equal(counts, np.ones(bins, np.uint32))


def test_tf32_rounding(samples: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal(100).astype(np.float32)
    x[0] = np.uint32(0x3F801000).view(np.float32)  # a tie: away from zero
    out = emulated_empty(100, np.uint32)
    module = EmulatedModule(samples / "fragments.cu", [f"-I{CUDA_DIR}"])
    module.get_function("round_tf32")((1,), (32,), (out, emulated(x), np.int32(100)))
    np.testing.assert_array_equal(out, (x.view(np.uint32) + 0x1000) & 0xFFFFE000)
    assert out[0] == 0x3F802000
