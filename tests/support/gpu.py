"""The GPU that tests run on, or the reason why they are skipped."""

import os
from functools import cache
from typing import TYPE_CHECKING

import pytest

from cupygpt.device.cuda_check import find_gpu
from cupygpt.errors import DeviceError

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


def needs_the_gpu_alone() -> None:
    """Skips a test that measures memory if pytest-xdist runs other tests on the same GPU."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("other tests use memory of this GPU at the same time: run it without -n")


@cache
def _device() -> "CUDA":
    index, _ = find_gpu(None)
    from cupygpt.device.cuda import CUDA

    return CUDA(index)
