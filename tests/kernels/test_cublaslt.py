"""Finding cuBLASLt and reporting its errors; no GPU is needed."""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cupygpt.errors import DeviceError, KernelError
from cupygpt.kernels import cublaslt


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
