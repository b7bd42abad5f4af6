"""Fixtures of the emulator's own tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cupygpt.emulator.compiler import missing_toolchain


@pytest.fixture(autouse=True, scope="session")
def _toolchain() -> None:
    """Skip the tests on a machine that cannot emulate kernels."""
    reason = missing_toolchain()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of sample kernels."""
    return Path(__file__).parents[1] / "samples"
