"""The parameters of a model on a device, from the weights of a file."""

import numpy as np

from cupygpt.config import GPTConfig
from cupygpt.device.device import Device
from cupygpt.device.precision import Precision
from cupygpt.model.tensors import Tensors, cut_packed, parameter_specs


def weights_bytes(config: GPTConfig, precision: Precision) -> int:
    """The memory that the parameters take in `precision`."""
    return config.num_parameters * precision.storage.itemsize


def parameters_on(
    device: Device, config: GPTConfig, weights: np.ndarray, precision: Precision
) -> Tensors:
    """The parameters in `precision`, from float32 `weights` (P,). The CPU takes these themselves.

    Raises DeviceError where the memory of a GPU does not suffice.
    """
    if device.is_gpu:
        flat = device.zeros(config.num_parameters, precision.storage)
        device.upload(flat, precision.encode(weights))
    else:
        flat = precision.encode(weights)
    return cut_packed(flat, parameter_specs(config))
