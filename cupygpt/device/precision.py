"""The number formats a run can compute in."""

from cupygpt.device.device import Device
from cupygpt.errors import ConfigError

TENSOR_CORE_CAPABILITY = (8, 0)
"""Ampere: the first GPUs that multiply in TF32 and bfloat16."""


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
