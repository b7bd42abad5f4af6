"""Files of arrays and their checksums."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cupygpt.atomic_file import atomic_write

_BLOCK_BYTES = 1 << 24


def write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> int:
    """Write arrays one after the other, atomically; returns the CRC-32 of the bytes."""
    checksum = 0
    with atomic_write(path) as file:
        for array in arrays:
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for start in range(0, len(raw), _BLOCK_BYTES):
                block = raw[start : start + _BLOCK_BYTES].data
                file.write(block)
                checksum = zlib.crc32(block, checksum)
    return checksum


def file_checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
