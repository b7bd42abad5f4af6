"""Which device a run computes on, and why."""

import re
from dataclasses import dataclass

from cupygpt.device.cpu import CPU
from cupygpt.device.cuda_check import find_gpu, gpus_of_driver
from cupygpt.device.device import Device
from cupygpt.errors import DeviceError


@dataclass(frozen=True)
class DeviceChoice:
    """A device and the reason why it was chosen, for the console.

    `warning`: a GPU is there and is not used, though nobody asked for the CPU.
    """

    device: Device
    reason: str
    warning: str | None = None


def choose_device(spec: str) -> DeviceChoice:
    """Device for `--device auto|cpu|cuda[:N]`; see `find_device`."""
    index, reason = find_device(spec)
    if index is None:
        unused = spec == "auto" and gpus_of_driver() > 0
        warning = f"the CPU is used, though this machine has a GPU: {reason}" if unused else None
        return DeviceChoice(CPU(), reason, warning)
    from cupygpt.device.cuda import CUDA

    return DeviceChoice(CUDA(index), reason)


def find_device(spec: str) -> tuple[int | None, str]:
    """Number of the GPU for `--device`, None for the CPU, and the reason; takes nothing of it yet.

    Raises DeviceError with what to do where the wish cannot be met; `auto` falls back to the CPU
    and says why.
    """
    if spec == "cpu":
        return None, "asked for with --device cpu"
    number = gpu_number(spec)
    try:
        return find_gpu(number)
    except DeviceError as error:
        if spec == "auto":
            return None, str(error)
        raise DeviceError(f"--device {spec}: {error} --device cpu works everywhere.") from error


def gpu_number(spec: str) -> int | None:
    """The N of cuda:N; None if `spec` leaves it open. Raises DeviceError if it is no GPU at all."""
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", spec)
    if not match:
        raise DeviceError(f"--device {spec}: not a device; use auto, cpu, cuda or cuda:N.")
    return None if match[1] is None else int(match[1])
