"""What the sample kernels compute, compared with NumPy.

Each function loads its kernels through `load`, runs them, and raises AssertionError if they
disagree with NumPy. The tests of clean kernels, of planted bugs and of mutants use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from emulator.cases import case

from cupygpt.emulator.arrays import EmulatedArray, emulated, emulated_empty
from cupygpt.emulator.emulate import load
from cupygpt.emulator.launching import EmulatedKernel
from cupygpt.lab.tolerance import assert_close, limit

SAMPLES = Path(__file__).parent / "samples"
CUDA_DIR = Path(__file__).parents[2] / "cuda"


def kernel(file: str, name: str, options: Sequence[str] = ()) -> EmulatedKernel:
    """A kernel of the samples, checked."""
    return load(SAMPLES / file, [f"-I{CUDA_DIR}", *options]).get_function(name)


def random(seed: int, *shape: int) -> EmulatedArray:
    """Normal float32 numbers on the device."""
    return emulated(np.random.default_rng(seed).standard_normal(shape), np.float32)


def bf16_bits(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 rounded to bfloat16, as uint16; no NaN."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_values(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The float32 values of bfloat16 bits."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def check(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], terms: int = 1) -> None:
    """Assert that got is want to within the float32 rounding of a sum of `terms`."""
    allowed = limit("float32", terms, np.abs(want).max())
    assert_close("result", np.asarray(got), np.asarray(want), allowed)


@case("matmul.cu")
def matmul(options: Sequence[str] = (), M: int = 33, N: int = 70, K: int = 36) -> None:
    """Tiled product whose sizes the tiles do not divide."""
    out, a, b = emulated_empty((M, N)), random(1, M, K), random(2, N, K)
    sizes = (np.int32(M), np.int32(N), np.int32(K))
    kernel("matmul.cu", "matmul", options)((-(-N // 32), -(-M // 32)), (64,), (out, a, b, *sizes))
    check(out, np.asarray(a, np.float64) @ np.asarray(b, np.float64).T, 4 * K)


@case("reduction.cu")
def moments(options: Sequence[str] = (), rows: int = 3, C: int = 300) -> None:
    """Two sums over a block, one after the other."""
    mean, var, inp = emulated_empty(rows), emulated_empty(rows), random(3, rows, C)
    kernel("reduction.cu", "moments", options)((rows,), (128,), (mean, var, inp, np.int32(C)))
    wide = np.asarray(inp, np.float64)
    check(mean, wide.mean(1), C)
    check(var, wide.var(1), C)


@case("reduction.cu")
def reverse_rows(options: Sequence[str] = ()) -> None:
    """Warps that exchange data through shared memory, each for itself."""
    out, inp = emulated_empty((16, 32)), random(4, 16, 32)
    kernel("reduction.cu", "reverse_rows", options)((2,), (128,), (out, inp))
    check(out, np.asarray(inp)[:, ::-1])


@case("reduction.cu")
def histogram(options: Sequence[str] = ()) -> None:
    """Dynamic shared memory and integer atomics."""
    values = np.random.default_rng(5).integers(0, 40, 500, dtype=np.int32)
    counts = emulated(np.full(40, 3, np.uint32))
    args = (counts, emulated(values), np.int32(500), np.int32(40))
    kernel("reduction.cu", "histogram", options)((3,), (64,), args, shared_mem=40 * 4)
    np.testing.assert_array_equal(counts, 3 + np.bincount(values, minlength=40).astype(np.uint32))


@case("pipeline.cu")
def add_mirrored(options: Sequence[str] = (), n: int = 1900) -> None:
    """cp.async through two buffers; the last tile lies partly outside."""
    out, inp = emulated_empty(n), random(6, n)
    kernel("pipeline.cu", "add_mirrored", options)((2,), (64,), (out, inp, np.int32(n)))
    padded = np.zeros(-(-n // 256) * 256, np.float32)
    padded[:n] = inp
    tiles = padded.reshape(-1, 256)
    check(out, (tiles + tiles[:, ::-1]).ravel()[:n])


@case("fragments.cu")
def mma_bf16(options: Sequence[str] = ()) -> None:
    """ldmatrix and mma against a plain product."""
    a, b = (bf16_bits(np.asarray(random(seed, n, 16))) for seed, n in ((7, 16), (8, 8)))
    c, d = random(9, 16, 8), emulated_empty((16, 8))
    args = (d, emulated(a), emulated(b), c)
    kernel("fragments.cu", "mma_bf16", options)((1,), (32,), args)
    wide = bf16_values(a).astype(np.float64) @ bf16_values(b).astype(np.float64).T
    check(d, wide + np.asarray(c), 64)


@case("fragments.cu")
def mma_tf32(options: Sequence[str] = ()) -> None:
    """mma for tf32; the operands are rounded by NumPy first, so that the product is exact."""
    a, b = (np.asarray(random(seed, n, 8)) for seed, n in ((10, 16), (11, 8)))
    rounded = [((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32) for x in (a, b)]
    c, d = random(12, 16, 8), emulated_empty((16, 8))
    args = (d, emulated(a), emulated(b), c)
    kernel("fragments.cu", "mma_tf32", options)((1,), (32,), args)
    check(d, rounded[0].astype(np.float64) @ rounded[1].astype(np.float64).T + np.asarray(c), 32)


@case("fragments.cu")
def ldmatrix(options: Sequence[str] = ()) -> None:
    """All four forms of ldmatrix against the layout that PTX states."""
    tile = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = emulated_empty((12, 32), np.uint32)
    kernel("fragments.cu", "ldmatrix_all", options)((1,), (32,), (out, emulated(tile)))
    plain = np.ascontiguousarray(tile).reshape(4, 32, 2)
    turned = np.ascontiguousarray(tile.transpose(0, 2, 1)).reshape(4, 32, 2)
    words = [np.uint32(x[..., 0]) | np.uint32(x[..., 1]) << 16 for x in (plain, turned)]
    want = np.concatenate([words[0], words[1], words[0][:2], words[1][:2]])
    np.testing.assert_array_equal(out, want)
