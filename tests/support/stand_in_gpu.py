"""A GPU that is not there: runs on it launch nothing, but choose their kernels as on the real one.

Use it inside `record_kernels`. Its arrays are never touched, so they take no memory.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from cupygpt.device.cpu import CPU
from cupygpt.kernels.matmul import register_matmul

# By compute capability: multiprocessors of the largest model, and KiB of shared memory of a
# multiprocessor and of a block. Source: the CUDA programming guide, "Technical specifications per
# compute capability".
_LIMITS = {
    "75": (72, 64, 64),
    "80": (108, 164, 163),
    "86": (84, 100, 99),
    "89": (142, 100, 99),
    "90": (132, 228, 227),
    "100": (148, 228, 227),
    "120": (188, 100, 99),
}

CAPABILITIES = tuple(_LIMITS)
"""The GPUs that exist here: their compute capabilities, without the dot."""


class StandInArray(np.ndarray[Any, Any]):
    """An array of a stand-in GPU; views keep its `device`, filling it does nothing."""

    gpu: Any = None

    def __array_finalize__(self, source: Any) -> None:
        self.gpu = getattr(source, "gpu", None)

    @property
    def device(self) -> Any:
        return self.gpu

    def fill(self, value: Any) -> None:
        pass


class StandInGPU(CPU):
    """A GPU of some compute capability, such as "90"."""

    is_gpu = True

    def __init__(self, capability: str) -> None:
        count, kib, block_kib = _LIMITS[capability]
        attributes = {
            "MultiProcessorCount": count,
            "MaxSharedMemoryPerMultiprocessor": kib << 10,
            "MaxSharedMemoryPerBlockOptin": block_kib << 10,
        }
        self._device = SimpleNamespace(
            id=f"stand-in {capability}", compute_capability=capability, attributes=attributes
        )
        self._capability = int(capability[:-1]), int(capability[-1])
        register_matmul(StandInArray, lambda out, a, b, **options: None)

    @property
    def compute_capability(self) -> tuple[int, int]:  # type: ignore[override]
        return self._capability

    def zeros(self, size: int, dtype: Any) -> Any:
        array = np.zeros(size, dtype).view(StandInArray)
        array.gpu = self._device
        return array
