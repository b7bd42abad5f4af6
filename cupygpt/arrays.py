"""The name of arrays on any device, and bfloat16 stored as uint16.

NumPy has no bfloat16, and only files and kernels need it.
"""

from typing import Any

import numpy as np

Array = Any
"""A numpy.ndarray, or an array of another device with the same interface."""


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even; NaN stays NaN. Returns uint16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits (uint16), exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
