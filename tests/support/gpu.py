"""The GPU that tests run on, or the reason why they are skipped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from cupygpt.device.cuda_check import find_gpu
from cupygpt.errors import DeviceError
from support.cache import cache_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from cupygpt.device.cuda import CUDA


def require_gpu() -> "CUDA":
    """The CUDA device of this test session; skips without one.

    With CUPYGPT_REQUIRE_GPU=1 in the environment a missing GPU fails the test instead.
    """
    try:
        return _device()
    except DeviceError as error:
        if os.environ.get("CUPYGPT_REQUIRE_GPU") == "1":
            raise
        pytest.skip(f"no GPU: {error}")


def require_cupy() -> Any:
    """CuPy on a machine with a GPU; without one the test is skipped, as by `require_gpu`."""
    require_gpu()
    import cupy

    return cupy


@cache
def _device() -> "CUDA":
    index, _ = find_gpu(None)
    from cupygpt.device.cuda import CUDA

    return CUDA(index)


@contextmanager
def turn_on_the_gpu(*, alone: bool) -> Iterator[None]:
    """Inside this context no test that needs the GPUs alone runs beside one that uses them.

    That holds for all tests of this machine, also those of other pytest processes.
    """
    if fcntl is None:
        yield
        return
    folder = cache_folder("gpu-lock")
    with (folder / "queue").open("w") as queue, (folder / "use").open("w") as use:
        # Who waits to be alone keeps the queue meanwhile, so that no later test goes first.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(use, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
