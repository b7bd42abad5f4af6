"""The device a run computes on: choosing it, allocating on it, moving data to and from it."""

import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupygpt.errors import DeviceError
from cupygpt.tensors import Array


class CPU:
    """NumPy arrays in main memory."""

    name = "cpu"

    def zeros(self, size: int, dtype: Any) -> Array:
        """Flat array of `size` zeros; raises DeviceError where memory does not suffice."""
        try:
            return np.zeros(size, dtype)
        except MemoryError:
            needed = size * np.dtype(dtype).itemsize
            raise DeviceError(
                f"{needed / 2**30:.1f} GiB of main memory could not be had. "
                f"Use a smaller -b or -t, or a smaller model."
            ) from None

    def upload(self, target: Array, source: np.ndarray) -> None:
        """Copy a host array into an array of this device."""
        np.copyto(target, source, casting="same_kind")

    def download(self, source: Array) -> np.ndarray:
        """The host copy of an array; for this device, the array itself."""
        return np.asarray(source)

    def free_bytes(self) -> int | None:
        """Memory that can still be allocated, or None where the system does not say."""
        return available_memory_bytes()

    def used_bytes(self) -> int | None:
        """Memory this process holds now (resident set), or None where the system does not say."""
        return resident_bytes()

    def describe(self) -> str:
        """One line for the console."""
        from cupygpt.ops.host import num_cores

        return f"CPU, {num_cores()} cores, NumPy {np.__version__}"


@dataclass(frozen=True)
class DeviceChoice:
    """A device and the reason why it was chosen, for the console."""

    device: CPU
    reason: str


def choose_device(spec: str) -> DeviceChoice:
    """Device for `--device auto|cpu|cuda[:N]`.

    Raises DeviceError with what to do where the wish cannot be met; `auto` falls back to the CPU
    and says why.
    """
    if spec == "cpu":
        return DeviceChoice(CPU(), "asked for with --device cpu")
    if spec == "auto":
        return DeviceChoice(CPU(), no_cuda_reason())
    if spec == "cuda" or spec.startswith("cuda:"):
        raise DeviceError(f"--device {spec}: {no_cuda_reason()} Use --device cpu until then.")
    raise DeviceError(f"--device {spec}: not a device; use auto, cpu, cuda or cuda:N.")


def no_cuda_reason() -> str:
    """Why this version computes on the CPU."""
    return "the CUDA device is not part of this version yet."


def available_memory_bytes() -> int | None:
    """Bytes of main memory free for new allocations; None where the system does not say."""
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
