"""The number formats a run can compute in.

| name | weights, activations, their gradients | operands of products | the rest |
|---|---|---|---|
| fp32 | float32 | float32 | float32 |
| tf32 | float32 | rounded to TF32 | float32 |
| bf16 | bfloat16, stored as uint16 | bfloat16 | float32 |
| fp64 | float64 | float64 | float64 (gradient checks on the CPU) |

"The rest" is statistics of LayerNorm, losses, moments, master weights and the gradients of
parameters.
"""

from dataclasses import dataclass

import numpy as np

from cupygpt.arrays import to_bfloat16
from cupygpt.device.device import Device
from cupygpt.errors import ConfigError

TENSOR_CORE_CAPABILITY = (8, 0)
"""Ampere: the first GPUs that multiply in TF32 and bfloat16."""


@dataclass(frozen=True)
class Precision:
    """How a run stores its numbers and multiplies them; see the table of this module.

    `name` is what `--precision` and run.json say. `storage` is the dtype of floatX arrays: weights,
    activations and gradients of activations. `statistics` is the dtype of all other floats.
    """

    name: str
    storage: np.dtype
    statistics: np.dtype
    uses_tensor_cores: bool = False

    @property
    def rounds_storage(self) -> bool:
        """Whether weights and activations hold fewer bits than the sums that they come from."""
        return self.storage.itemsize < self.statistics.itemsize

    @property
    def rounds_products(self) -> bool:
        """Whether products round float32 operands to TF32."""
        return self.uses_tensor_cores and not self.rounds_storage

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of each dtype name in the tensor tables (model/tensors.py)."""
        return {
            "floatX": self.storage,
            "float32": self.statistics,
            "int32": np.dtype(np.int32),
        }

    def encode(self, values: np.ndarray) -> np.ndarray:
        """float32 `values` as an array of `storage` holds them, rounded to nearest."""
        return to_bfloat16(values) if self.rounds_storage else values


_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FP32 = Precision("fp32", _FLOAT32, _FLOAT32)
TF32 = Precision("tf32", _FLOAT32, _FLOAT32, uses_tensor_cores=True)
BF16 = Precision("bf16", np.dtype(np.uint16), _FLOAT32, uses_tensor_cores=True)
FP64 = Precision("fp64", _FLOAT64, _FLOAT64)

PRECISIONS = {precision.name: precision for precision in (FP32, TF32, BF16)}
"""What a run can be asked for, by name."""


def default_precision(device: Device) -> tuple[Precision, str]:
    """(precision, reason) for `--precision auto`.

    bfloat16 from compute capability 8.0 on: half the bytes and twice the rate of TF32, and with
    float32 master weights, statistics and sums the loss is the same to the second decimal. Else
    fp32.
    """
    capability = device.compute_capability
    if capability is None:
        return FP32, "the CPU's own"
    if capability >= TENSOR_CORE_CAPABILITY:
        return BF16, "the fastest this GPU has"
    return FP32, f"compute capability {capability[0]}.{capability[1]} has no bfloat16"


def check_precision(device: Device, precision: Precision) -> None:
    """Raise ConfigError where `device` cannot compute in `precision`."""
    if supports_precision(device, precision):
        return
    capability = device.compute_capability
    where = (
        "the CPU" if capability is None else f"compute capability {capability[0]}.{capability[1]}"
    )
    raise ConfigError(
        f"--precision {precision.name} needs a GPU of compute capability 8.0 (Ampere) or newer, "
        f"this run is on {where}: use --precision fp32."
    )


def supports_precision(device: Device, precision: Precision) -> bool:
    """Whether `device` computes in `precision`."""
    capability = device.compute_capability
    return not precision.uses_tensor_cores or (
        capability is not None and capability >= TENSOR_CORE_CAPABILITY
    )


def precision_of_file(name: str, device: Device) -> Precision:
    """The precision `name` of a file, or fp32 on a device that has not got it."""
    precision = PRECISIONS[name]
    return precision if supports_precision(device, precision) else FP32


def chosen_precision(name: str, device: Device) -> Precision:
    """The precision that `--precision NAME` means on `device`; ConfigError if it has not got it."""
    if name == "auto":
        return default_precision(device)[0]
    check_precision(device, PRECISIONS[name])
    return PRECISIONS[name]
