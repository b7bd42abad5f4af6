"""The device a run computes on: choosing it, allocating on it, moving data to and from it."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cupygpt.arrays import Array


class PendingRead(Protocol):
    """An array on its way to the host."""

    def ready(self) -> bool:
        """Whether `value` returns without waiting."""

    def value(self) -> np.ndarray:
        """The array as it was when it was asked for."""


class Replay(Protocol):
    """Work that was captured."""

    def launch(self) -> None:
        """Queue all of it."""


class Device(Protocol):
    """What a run needs of a device; see CPU, and CUDA in cuda_device.py."""

    @property
    def name(self) -> str:
        """The kind of device: cpu or cuda."""

    def zeros(self, size: int, dtype: Any) -> Array:
        """Flat array of zeros; DeviceError where memory does not suffice."""

    def upload(self, target: Array, source: np.ndarray) -> None:
        """Copy a host array into an array of the device; `source` may change afterwards."""

    def download(self, source: Array) -> np.ndarray:
        """The host copy of an array; waits for the work queued before it."""

    def read_later(self, source: Array) -> PendingRead:
        """The host copy of an array as of now, without waiting for it."""

    def synchronize(self) -> None:
        """Wait for all queued work."""

    def capture(self, function: Callable[[], None]) -> "Replay":
        """Record the work that `function` queues, to be launched again and again."""

    def free_bytes(self) -> int | None:
        """Memory that can still be allocated; None where the system does not say."""

    def used_bytes(self) -> int | None:
        """Memory the run holds; None where the system does not say."""

    def describe(self) -> str:
        """One line for the console."""
