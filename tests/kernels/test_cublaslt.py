"""How a product is described to cuBLASLt; finding it, and its errors. No GPU is needed."""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cupygpt.errors import DeviceError, KernelError
from cupygpt.kernels import cublaslt
from cupygpt.kernels.cublaslt import problem_of


def test_missing_pathfinder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(DeviceError, match=r"cuda-pathfinder is missing.*cupygpt\[cuda12\]"):
        cublaslt.find_library("cublasLt")


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="cuda-pathfinder is not installed")

    def missing(name: str) -> None:
        raise pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(DeviceError, match=r"library nvrtc was not found: pip install"):
        cublaslt.find_library("nvrtc")


class StandIn:
    """A library whose functions succeed, but that has no product."""

    def __init__(self, path: str) -> None:
        self.cublasLtGetStatusName = lambda status: {15: b"CUBLAS_STATUS_NOT_SUPPORTED"}[status]

    def __getattr__(self, name: str) -> Callable[..., int]:
        def succeed(*arguments: Any) -> int:
            return 0

        setattr(self, name, succeed)
        return succeed


@pytest.fixture(params=["library", "stand-in"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> cublaslt.CublasLt:
    """NVIDIA's library where it is installed, and one that takes its place everywhere."""
    if request.param == "stand-in":
        monkeypatch.setattr(ctypes, "CDLL", StandIn)
        return cublaslt.CublasLt("libcublasLt.so")
    try:
        return cublaslt.load_cublaslt()
    except DeviceError as error:
        pytest.skip(str(error))


def test_status_codes_have_names(library: cublaslt.CublasLt) -> None:
    library.check(0, "nothing")
    with pytest.raises(KernelError, match=r"some product: CUBLAS_STATUS_NOT_SUPPORTED\."):
        library.check(15, "some product")


@pytest.mark.parametrize(
    ("status", "message"),
    [(15, "some product: CUBLAS_STATUS_NOT_SUPPORTED"), (0, "cuBLASLt knows no algorithm")],
)
def test_no_algorithm_names_the_product(
    library: cublaslt.CublasLt,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(library, "_heuristic", lambda *arguments: status)
    with pytest.raises(KernelError, match=message):
        library.algorithms(
            0, 0, (0, 0, 0),
            alignments=(4, 4, 4), workspace_bytes=0, reduction_schemes=2, count=1,
            what="some product",
        )  # fmt: skip


def key(
    out: tuple[int, ...],
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    types: str = "fff",
    bias: Any = None,
    aux: Any = None,
    flags: tuple[Any, ...] = (False, False, False, None, False),
    strides: dict[str, tuple[int, ...]] | None = None,
    devices: tuple[int, ...] = (0, 0, 0),
) -> tuple[Any, ...]:
    """What `matmul` looks plans up by, for contiguous arrays unless `strides` says otherwise."""
    strides = strides or {}
    signatures = []
    for name, shape, dtype, device in zip("oab", (out, a, b), types, devices, strict=True):
        own = strides.get(name) or np.empty(shape, dtype).strides
        signatures.append((shape, own, dtype, 256, device))
    return (*signatures, bias, aux, *flags)


def test_row_major_becomes_column_major_with_the_operands_exchanged() -> None:
    problem = problem_of(key((5, 3), (5, 2), (2, 3)))
    assert (problem.A.rows, problem.A.cols, problem.A.leading) == (3, 2, 3)  # b
    assert (problem.B.rows, problem.B.cols, problem.B.leading) == (2, 5, 2)  # a
    assert (problem.D.rows, problem.D.cols, problem.D.leading) == (3, 5, 3)
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (False, False, 2)


def test_transposes_are_exchanged_too() -> None:
    problem = problem_of(key((5, 3), (5, 2), (3, 2), flags=(False, True, False, None, False)))
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (True, False, 2)
    problem = problem_of(key((5, 3), (2, 5), (2, 3), flags=(True, False, False, None, False)))
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (False, True, 2)


def test_rows_may_lie_apart() -> None:
    problem = problem_of(key((5, 3), (5, 2), (2, 3), strides={"a": (44, 4)}))
    assert problem.B.leading == 11


def test_strides_of_single_rows_and_columns_do_not_matter() -> None:
    problem = problem_of(key((1, 3), (1, 1), (1, 3), strides={"a": (400, 36), "b": (8, 4)}))
    assert (problem.B.leading, problem.A.leading) == (1, 3)


def test_tf32_concerns_float32_only() -> None:
    flags = (False, False, False, None, True)
    shapes = ((4, 4), (4, 4), (4, 4))
    assert problem_of(key(*shapes, flags=flags)).compute == cublaslt.COMPUTE_TF32
    assert problem_of(key(*shapes)).compute == cublaslt.COMPUTE_FLOAT32
    assert problem_of(key(*shapes, types="HHH", flags=flags)).compute == cublaslt.COMPUTE_FLOAT32


def test_epilogues() -> None:
    shapes = ((4, 8), (4, 4), (4, 8))
    bias, aux = ((8,), (4,), "f", 16, 0), ((4, 8), (64, 4), "f", 256, 0)
    gelu_flags = (False, False, False, "gelu", False)
    dgelu_flags = (False, False, False, "dgelu", False)
    assert problem_of(key(*shapes)).epilogue == 1
    assert problem_of(key(*shapes, bias=bias)).epilogue == 4
    assert problem_of(key(*shapes, flags=gelu_flags)).epilogue == 32
    problem = problem_of(key(*shapes, bias=bias, aux=aux, flags=gelu_flags))
    assert (problem.epilogue, problem.bias_alignment, problem.aux_leading) == (164, 16, 16)
    assert problem_of(key(*shapes, aux=aux, flags=dgelu_flags)).epilogue == 192


WRONG = {
    "inner lengths": (key((5, 3), (5, 2), (4, 3)), r"out \(5, 3\) from a \(5, 2\) @ b \(4, 3\)"),
    "result": (key((3, 5), (5, 2), (2, 3)), "shapes do not fit"),
    "empty sum": (key((5, 3), (5, 0), (0, 3)), r"a has shape \(5, 0\): .* nothing"),
    "1-D": (key((5, 3), (10,), (2, 3)), r"a has shape \(10,\): products take 2-D"),
    "float64": (key((5, 3), (5, 2), (2, 3), types="fdf"), "a has dtype 'd'"),
    "mixed": (key((5, 3), (5, 2), (2, 3), types="ffH"), "float32 from float32 @ bfloat16"),
    "narrowed": (key((5, 3), (5, 2), (2, 3), types="Hff"), "bfloat16 from float32 @ float32"),
    "transposed view": (
        key((5, 3), (5, 2), (2, 3), strides={"a": (4, 20)}),
        r"a \(5, 2\) has strides \(4, 20\) bytes: its rows must be contiguous",
    ),
    "overlapping rows": (key((5, 3), (5, 2), (2, 3), strides={"a": (4, 4)}), "must not overlap"),
    "reversed rows": (key((5, 3), (5, 2), (2, 3), strides={"a": (-8, 4)}), "must not overlap"),
    "two GPUs": (key((5, 3), (5, 2), (2, 3), devices=(0, 1, 0)), r"different GPUs: \[0, 1\]"),
    "bias length": (key((5, 3), (5, 2), (2, 3), bias=((5,), (4,), "f", 256, 0)), r"\(3,\)"),
    "bias type": (key((5, 3), (5, 2), (2, 3), bias=((3,), (2,), "H", 256, 0)), "result's type"),
    "bias stride": (key((5, 3), (5, 2), (2, 3), bias=((3,), (8,), "f", 256, 0)), "contiguous"),
    "aux alone": (key((4, 8), (4, 4), (4, 8), aux=((4, 8), (32, 4), "f", 256, 0)), "epilogue"),
    "aux shape": (
        key(
            (4, 8), (4, 4), (4, 8),
            aux=((8, 4), (16, 4), "f", 256, 0), flags=(False, False, False, "gelu", False),
        ),
        "shape of out",
    ),
    "aux rows": (
        key(
            (4, 6), (4, 4), (4, 6),
            aux=((4, 6), (24, 4), "f", 256, 0), flags=(False, False, False, "gelu", False),
        ),
        "6 elements from row to row.*multiple of 8",
    ),
    "dgelu without aux": (
        key((4, 8), (4, 4), (4, 8), flags=(False, False, False, "dgelu", False)), "takes aux",
    ),
    "accumulated gelu": (
        key((4, 8), (4, 4), (4, 8), flags=(False, False, True, "gelu", False)), "does not add",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str) -> None:
    arguments, message = WRONG[name]
    with pytest.raises(KernelError, match=message):
        problem_of(arguments)


def test_description_reads_as_the_caller_wrote_it() -> None:
    problem = problem_of(key((5, 3), (2, 5), (2, 3), flags=(True, False, True, None, True)))
    assert problem.describe() == "product out (5, 3) float32 += (2, 5)ᵀ @ (2, 3) float32, TF32"
