"""What a run needs of the device that it computes on, whatever the device is.

CPU is in cpu.py, CUDA in cuda.py; choose.py chooses. The ops do not come here: they look at the
arrays that they are given.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cupygpt.arrays import Array


class PendingRead(Protocol):
    """An array on its way to the host."""

    @property
    def event(self) -> Any:
        """When it arrives there, as `Device.record` gives it."""

    def ready(self) -> bool:
        """Whether `value` returns without waiting."""

    def value(self) -> np.ndarray:
        """The array as it was when it was asked for."""


class Replay(Protocol):
    """Work that was captured."""

    def launch(self) -> None:
        """Queue all of it."""


class Device(Protocol):
    """Memory, copies, a queue of work, and what the device is."""

    @property
    def is_gpu(self) -> bool:
        """Whether the ops launch kernels and cuBLASLt here, which a graph can capture."""

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """(9, 0) for a Hopper GPU; None for a device that is no GPU."""

    def describe(self) -> str:
        """One line for the console."""

    def peak_flops(self, precision: str) -> float | None:
        """Operations per second by the maker's figures, in fp32, tf32 or bf16; None if unknown."""

    def activate(self) -> None:
        """Make the calling thread work on this device; each thread that uses it calls this."""

    def zeros(self, size: int, dtype: Any) -> Array:
        """Flat array of zeros; DeviceError where memory does not suffice."""

    def free_bytes(self) -> int | None:
        """Memory that can still be allocated; None where the system does not say."""

    def used_bytes(self) -> int | None:
        """Memory the run holds; None where the system does not say."""

    def upload(self, target: Array, source: np.ndarray) -> None:
        """Copy a host array into an array of the device; `source` may change afterwards."""

    def download(self, source: Array) -> np.ndarray:
        """The host copy of an array; waits for the work queued before it."""

    def read_later(self, source: Array) -> PendingRead:
        """The host copy of an array as of now, without waiting for it."""

    def synchronize(self) -> None:
        """Wait for all queued work."""

    def record(self) -> Any:
        """An event: the point in the queue of work where it stands now."""

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        """Milliseconds between two recorded events; waits for the second."""

    def capture(self, function: Callable[[], None]) -> Replay:
        """Record the work that `function` queues, to be launched again and again."""
