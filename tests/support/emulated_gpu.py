"""A GPU in the emulator: whole runs on it execute the kernels of cuda/, where there is no GPU."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulator import product

from cupygpt.device.cpu import CPU
from cupygpt.device.device import PendingRead
from cupygpt.emulator.arrays import EmulatedArray, emulated
from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.emulator.emulate import loader
from cupygpt.kernels.load import register_loader
from cupygpt.kernels.matmul import register_matmul


class HopperArray(EmulatedArray):
    """An emulated array for which ops choose the kernels with wgmma."""

    device: Any = SimpleNamespace(compute_capability="90")


class EmulatedGPU(CPU):
    """The CPU device, but its arrays take the kernels of an op instead of the NumPy form."""

    is_gpu = True
    compute_capability: Any = (8, 0)
    array_type = EmulatedArray

    def __init__(self) -> None:
        run_on_emulator(self.array_type)

    def zeros(self, size: int, dtype: Any) -> Any:
        return emulated(np.zeros(size, dtype)).view(self.array_type)

    def read_later(self, source: Any) -> PendingRead:
        return super().read_later(np.asarray(source))


class EmulatedHopper(EmulatedGPU):
    """The same with compute capability 9.0."""

    compute_capability = (9, 0)
    array_type = HopperArray


def run_on_emulator(array_type: type) -> None:
    """Ops of arrays of this type run on the emulator; skips the test where it cannot."""
    if reason := missing_toolchain():
        pytest.skip(reason)
    register_loader(array_type, loader)
    register_matmul(array_type, product.matmul)
