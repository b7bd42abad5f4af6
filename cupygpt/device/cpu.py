"""The CPU as a device: NumPy arrays in main memory."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.container import address_space_left_bytes, memory_left_bytes
from cupygpt.device.cpu_threads import num_cores
from cupygpt.device.device import PendingRead, Replay
from cupygpt.errors import DeviceError


class CPU:
    """NumPy arrays in main memory."""

    is_gpu = False
    compute_capability = None

    def peak_flops(self, precision: str) -> float | None:
        """None: no table of processors is kept."""
        return None

    def activate(self) -> None:
        """Nothing: every thread works on the CPU."""

    def zeros(self, size: int, dtype: Any) -> Array:
        """Flat array of `size` zeros; raises DeviceError where memory does not suffice."""
        try:
            return np.zeros(size, dtype)
        except MemoryError:
            needed = size * np.dtype(dtype).itemsize
            raise DeviceError(
                f"{needed / 2**30:.1f} GiB of main memory could not be allocated. "
                f"Use a smaller -b or -t, or a smaller model."
            ) from None

    def upload(self, target: Array, source: np.ndarray) -> None:
        """Copy a host array into an array of this device."""
        np.copyto(target, source, casting="same_kind")

    def download(self, source: Array) -> np.ndarray:
        """The host copy of an array; for this device, the array itself."""
        return np.asarray(source)

    def read_later(self, source: Array) -> PendingRead:
        """A copy of the array: there is nothing to wait for."""
        return _HostCopy(np.array(source), self.record())

    def synchronize(self) -> None:
        """Nothing: work on the CPU is done when its call returns."""

    def record(self) -> float:
        """The time now, in seconds."""
        return time.perf_counter()

    def elapsed_ms(self, start: float, stop: float) -> float:
        """Milliseconds between two recorded times."""
        return 1e3 * (stop - start)

    def capture(self, function: Callable[[], None]) -> Replay:
        """Nothing is recorded: launching calls the function."""
        return _Call(function)

    def free_bytes(self) -> int | None:
        """Memory that can still be allocated, or None where the system does not say."""
        return available_memory_bytes()

    def used_bytes(self) -> int | None:
        """Memory this process holds now (resident set), or None where the system does not say."""
        return resident_bytes()

    def describe(self) -> str:
        """One line for the console."""
        cores = num_cores()
        return f"CPU, {cores} core{'s' * (cores > 1)}, NumPy {np.__version__}"


@dataclass(frozen=True)
class _Call:
    launch: Callable[[], None]


@dataclass(frozen=True)
class _HostCopy:
    values: np.ndarray
    event: float

    def ready(self) -> bool:
        return True

    def value(self) -> np.ndarray:
        return self.values


def available_memory_bytes() -> int | None:
    """Bytes of main memory free for new allocations; None where the system does not say.

    That is what the machine has left, or what the limit of a container or of `ulimit -v` leaves if
    it is less.
    """
    known = [_machine_memory_bytes(), memory_left_bytes(), address_space_left_bytes()]
    return min((value for value in known if value is not None), default=None)


def _machine_memory_bytes() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a user's path
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def resident_bytes() -> int | None:
    """Resident set of this process now; the peak where only that is known; None on Windows."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
