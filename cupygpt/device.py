"""The device a run computes on: choosing it, allocating on it, moving data to and from it."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cupygpt.errors import ConfigError, DeviceError
from cupygpt.tensors import Array

TENSOR_CORE_CAPABILITY = (8, 0)
"""Ampere: the first GPUs that multiply in TF32 and bfloat16."""


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


class CPU:
    """NumPy arrays in main memory."""

    @property
    def name(self) -> str:
        """For messages and comparisons."""
        return "cpu"

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

    def read_later(self, source: Array) -> PendingRead:
        """A copy of the array: there is nothing to wait for."""
        return _HostCopy(np.array(source))

    def synchronize(self) -> None:
        """Nothing: work on the CPU is done when its call returns."""

    def capture(self, function: Callable[[], None]) -> "Replay":
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
        from cupygpt.ops.workers import num_cores

        cores = num_cores()
        return f"CPU, {cores} core{'s' * (cores > 1)}, NumPy {np.__version__}"


@dataclass(frozen=True)
class _Call:
    launch: Callable[[], None]


@dataclass(frozen=True)
class _HostCopy:
    values: np.ndarray

    def ready(self) -> bool:
        return True

    def value(self) -> np.ndarray:
        return self.values


@dataclass(frozen=True)
class DeviceChoice:
    """A device and the reason why it was chosen, for the console."""

    device: Device
    reason: str


def choose_device(spec: str) -> DeviceChoice:
    """Device for `--device auto|cpu|cuda[:N]`; see `find_device`."""
    index, reason = find_device(spec)
    if index is None:
        return DeviceChoice(CPU(), reason)
    from cupygpt.cuda_device import CUDA

    return DeviceChoice(CUDA(index), reason)


def find_device(spec: str) -> tuple[int | None, str]:
    """Number of the GPU for `--device`, None for the CPU, and the reason; takes nothing of it yet.

    Raises DeviceError with what to do where the wish cannot be met; `auto` falls back to the CPU
    and says why.
    """
    if spec == "cpu":
        return None, "asked for with --device cpu"
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", spec)
    if not match:
        raise DeviceError(f"--device {spec}: not a device; use auto, cpu, cuda or cuda:N.")
    # CuPy need not be installed: nothing that imports it is imported before it is wanted.
    from cupygpt.cuda_probe import find_gpu

    try:
        return find_gpu(None if match[1] is None else int(match[1]))
    except DeviceError as error:
        if spec == "auto":
            return None, str(error)
        raise DeviceError(f"--device {spec}: {error} --device cpu works everywhere.") from error


def default_precision(device: Device) -> tuple[str, str]:
    """(precision, reason) for `--precision auto`.

    bfloat16 from compute capability 8.0 on: half the bytes and twice the rate of TF32, and with
    float32 master weights, statistics and sums the loss is the same to the second decimal. Else
    fp32.
    """
    capability = compute_capability(device)
    if capability is None:
        return "fp32", "the CPU's own"
    if capability >= TENSOR_CORE_CAPABILITY:
        return "bf16", "the fastest this GPU has"
    return "fp32", f"compute capability {capability[0]}.{capability[1]} has no bfloat16"


def check_precision(device: Device, precision: str) -> None:
    """Raise ConfigError where `device` cannot compute in `precision` (fp32, tf32 or bf16)."""
    if supports_precision(device, precision):
        return
    capability = compute_capability(device)
    where = (
        "the CPU" if capability is None else f"compute capability {capability[0]}.{capability[1]}"
    )
    raise ConfigError(
        f"--precision {precision} needs a GPU of compute capability 8.0 (Ampere) or newer, "
        f"this run is on {where}: use --precision fp32."
    )


def supports_precision(device: Device, precision: str) -> bool:
    """Whether `device` computes in `precision` (fp32, tf32 or bf16)."""
    capability = compute_capability(device)
    return precision == "fp32" or (capability is not None and capability >= TENSOR_CORE_CAPABILITY)


def compute_capability(device: Device) -> tuple[int, int] | None:
    """(9, 0) for a Hopper GPU; None for a device that is no GPU."""
    capability: tuple[int, int] | None = getattr(device, "compute_capability", None)
    return capability


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
