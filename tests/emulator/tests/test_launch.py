"""Wrong launches are refused before the kernel runs; what is not emulated does not compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupygpt.emulator.arrays import EmulatedArray, emulated, emulated_empty
from cupygpt.emulator.emulate import EmulatedModule, load, loader, substituted
from cupygpt.emulator.faults import CompileError
from cupygpt.emulator.launching import EmulatedKernel
from cupygpt.emulator.toolchain import precompile

f32, i32 = np.float32, np.int32


@pytest.fixture
def matmul(samples: Path) -> EmulatedKernel:
    return EmulatedModule(samples / "matmul.cu").get_function("matmul")


def good() -> list[Any]:
    """Arguments for a product of 4 x 4."""
    return [emulated_empty((4, 4)) for _ in range(3)] + [i32(4), i32(4), i32(4)]


WRONG_ARGUMENTS: list[tuple[int, Callable[[], Any], type[Exception], str]] = [
    (3, lambda: 4, TypeError, "takes a int32, a int was given"),
    (3, lambda: np.int64(4), TypeError, "takes a int32, a int64"),
    (3, lambda: f32(4), TypeError, "takes a int32, a float32"),
    (3, lambda: np.uint32(4), TypeError, "takes a int32, a uint32"),
    (0, lambda: np.zeros((4, 4), f32), TypeError, "takes an EmulatedArray, a ndarray"),
    (0, lambda: 1.0, TypeError, "takes an EmulatedArray, a float"),
    (0, lambda: np.uint64(4096), TypeError, "takes an EmulatedArray, a uint64"),
    (0, lambda: emulated_empty((4, 4), np.float64), TypeError, "float32 elements, .* float64"),
    (0, lambda: emulated_empty((4, 8))[:, ::2], ValueError, "not C-contiguous"),
    (0, lambda: emulated_empty((4, 4)).T, ValueError, "not C-contiguous"),
    (0, lambda: np.zeros((4, 4), f32).view(EmulatedArray), TypeError, "not in emulated device"),
]


@pytest.mark.parametrize(("position", "make", "error", "message"), WRONG_ARGUMENTS)
def test_wrong_argument(
    matmul: EmulatedKernel,
    position: int,
    make: Callable[[], Any],
    error: type[Exception],
    message: str,
) -> None:
    args = good()
    args[position] = make()
    with pytest.raises(error, match=message):
        matmul((1,), (64,), args)


def test_wrong_number_of_arguments(matmul: EmulatedKernel) -> None:
    with pytest.raises(TypeError, match="takes 6 arguments, 5 were given"):
        matmul((1,), (64,), good()[:5])


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0,), (64,), 0, "grid"),
        ((1, 65536), (64,), 0, "grid"),
        ((1,), (0,), 0, "block"),
        ((1,), (2, 2, 65), 0, "block"),
        ((1,), (65,), 0, "65 threads per block, the kernel allows 64"),
        ((1, 1, 1, 1), (64,), 0, "one to three dimensions"),
        ((1,), (64,), 228 << 10, "shared memory"),
        ((1,), (64,), 50_000, "max_dynamic_shared_size_bytes"),
    ],
)
def test_wrong_configuration(
    matmul: EmulatedKernel,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        matmul(grid, block, good(), shared_mem=shared)


def test_kernel_names_come_from_the_file(samples: Path) -> None:
    module = EmulatedModule(samples / "reduction.cu")
    assert module.kernel_names == ("moments", "reverse_rows", "histogram")
    with pytest.raises(KeyError, match="no kernel sum, only moments, reverse_rows, histogram"):
        module.get_function("sum")


UNSUPPORTED = {
    'asm volatile("membar.gl;");': "inline PTX outside cuda/lib/ptx.cuh",
    "other<<<1, 1>>>(out);": "dynamic parallelism",
    "__syncthreads_or(1);": "__syncthreads_or",
    "unsigned m = __activemask();": "__activemask",
    "__syncwarp(0xffff);": "__syncwarp with mask 0xffff",
    "__shfl_down_sync(0x0000ffffu, 1.0f, 1);": "__shfl_down_sync with mask 0x0000ffff",
    "float t = tex2D<float>(0, 1, 1);": "tex2D",
    "extern __shared__ float buffer[];": "buffer.*one name, smem",
    "__half h = __hadd(__half(1.0f), __half(2.0f));": "__hadd",
    "cooperative_groups::this_grid().sync();": "cooperative_groups",
    "__nanosleep(100);": "__nanosleep",
    "no_such_intrinsic(3);": "no_such_intrinsic",
}


@pytest.mark.parametrize(("code", "message"), UNSUPPORTED.items())
def test_what_is_not_emulated_is_named(tmp_path: Path, code: str, message: str) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(
        f'#include <cuda_fp16.h>\nextern "C" __global__ void k(float* out) {{\n{code}\n}}\n'
    )
    with pytest.raises(CompileError, match=message) as caught:
        EmulatedModule(source)
    if "smem" not in message:
        assert "kernel.cu:3" in str(caught.value)


HEADERS = {
    "cooperative_groups.h": "cooperative_groups is not emulated",
    "mma.h": "wmma. is not emulated",
    "cub/cub.cuh": "cub is not emulated",
    "cuda/barrier": "cuda/barrier is not emulated",
}


@pytest.mark.parametrize(("header", "message"), HEADERS.items())
def test_headers_that_are_not_emulated_are_named(tmp_path: Path, header: str, message: str) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(f'#include <{header}>\nextern "C" __global__ void k() {{}}\n')
    with pytest.raises(CompileError, match=message):
        EmulatedModule(source)


def test_code_that_the_preprocessor_removes_is_not_checked(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(
        'extern "C" __global__ void k(int* out) {\n'
        "#ifdef CUPYGPT_EMULATOR\n"
        "    out[0] = 5;  // no asm here\n"
        "#else\n"
        '    asm volatile("wgmma.fence;");\n'
        "#endif\n}\n"
    )
    out = emulated_empty(1, i32)
    EmulatedModule(source).get_function("k")((1,), (1,), (out,))
    assert int(out[0]) == 5


def test_entry_without_c_linkage_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void k() {}\n")
    with pytest.raises(CompileError, match='k: entry points must be extern "C"'):
        EmulatedModule(source)


def test_options_choose_the_variant(samples: Path) -> None:
    out = emulated_empty(8)
    args = (out, emulated(np.arange(8, dtype=f32)), i32(8))
    options = ("-DfloatX=float", "-std=c++17", "-lineinfo", "--use_fast_math")
    load(samples / "conversions.cu", options).get_function("to_floatX")((1,), (32,), args)
    np.testing.assert_array_equal(out, np.arange(8))


def test_precompile_fills_the_cache(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(tmp_path))
    made = precompile([(samples / "matmul.cu", ()), (samples / "matmul.cu", ("-DBUG=early_exit",))])
    assert len({m.library for m in made}) == 2
    assert all(m.library.parent == tmp_path / "emulator" for m in made)
    stamp = made[0].library.stat().st_mtime_ns
    assert precompile([(samples / "matmul.cu", ())])[0] == made[0]
    assert made[0].library.stat().st_mtime_ns == stamp


def test_an_edited_file_is_compiled_again(tmp_path: Path) -> None:
    source, header = tmp_path / "kernel.cu", tmp_path / "value.cuh"
    source.write_text(
        '#include "value.cuh"\nextern "C" __global__ void k(int* o) { o[0] = VALUE; }\n'
    )
    out = emulated_empty(1, i32)
    for value in (3, 4):
        header.write_text(f"#define VALUE {value}\n")
        EmulatedModule(source).get_function("k")((1,), (1,), (out,))
        assert int(out[0]) == value


def test_structs_are_passed_by_value(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(
        "struct Pair { long long low; int high; };\n"
        'extern "C" __global__ void k(long long* out, int before, Pair pair, int after) {\n'
        "    out[0] = before, out[1] = pair.low, out[2] = pair.high, out[3] = after;\n}\n"
    )
    kernel = EmulatedModule(source).get_function("k")
    dtype = np.dtype([("low", np.int64), ("high", i32)], align=True)
    out, pair = emulated_empty(4, np.int64), np.array((2**40, 3), dtype)
    kernel((1,), (1,), (out, i32(1), pair, i32(4)))
    np.testing.assert_array_equal(out, [1, 2**40, 3, 4])
    for wrong in (np.int64(3), np.array([(1, 2)], dtype), np.zeros((), [("low", np.int64)])):
        with pytest.raises(TypeError, match="0-d array of a structured dtype of 16 bytes"):
            kernel((1,), (1,), (out, i32(1), wrong, i32(4)))


def test_loader_follows_substitution(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("original", "mutant")]
    for value, folder in enumerate(folders):
        folder.mkdir()
        code = f'extern "C" __global__ void k(int* o) {{ o[0] = {value}; }}\n'
        (folder / "kernel.cu").write_text(code)
    kernel = loader(folders[0] / "kernel.cu", ()).get_function("k")
    out = emulated(np.full(1, 9, i32))
    kernel((1,), (1,), (out,))
    assert int(out[0]) == 0
    with substituted(*folders):
        kernel((1,), (1,), (out,))
    assert int(out[0]) == 1
    kernel((1,), (1,), (out,))
    assert int(out[0]) == 0


def test_arrays_stay_in_device_memory(rng: np.random.Generator) -> None:
    x = emulated(rng.standard_normal((4, 6)), f32)
    for made in (x[1:], x * 2, x.copy(), x.astype(np.float64), np.zeros_like(x), x.reshape(-1)):
        assert isinstance(made, EmulatedArray)
    x += 1
    total = np.asarray(x).sum()
    assert type(np.asarray(x)) is np.ndarray
    assert float(x.sum()) == float(total)
    out = emulated_empty((4, 6), np.uint16)
    with pytest.raises(TypeError, match="float32 elements"):
        EmulatedModule(
            Path(__file__).parents[1] / "samples" / "conversions.cu", ["-DfloatX=float"]
        ).get_function("to_floatX")((1,), (32,), (out, x, i32(24)))
