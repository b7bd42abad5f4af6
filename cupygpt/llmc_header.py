"""The 1024-byte header that all llm.c files share, and checksummed, atomic writing."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cupygpt.atomic_file import atomic_write
from cupygpt.errors import CheckpointError

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
_BLOCK_BYTES = 1 << 24

KINDS = {
    20240326: "a model",
    20240327: "a debug state",
    20240328: "a tokenizer",
    20240520: "GPT-2 tokens",
    20240522: "an evaluation set",
    20240527: "a training state",
    20240801: "Llama 3 tokens",
    20240803: "a Llama 3 model",
}


def read_header(path: Path) -> np.ndarray:
    """The 256 int32 of a file. Raises CheckpointError if it is missing or shorter than that."""
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(raw) < HEADER_BYTES:
        raise CheckpointError(
            f"{path}: {len(raw)} bytes; even the header has {HEADER_BYTES}. "
            f"The file is cut short; copy it again."
        )
    return np.frombuffer(raw, "<i4").astype(np.int32)


def check_magic(path: Path, header: np.ndarray, magic: int) -> None:
    """Raise CheckpointError unless the file is of the wanted kind; say what it is instead."""
    found = int(header[0])
    if found != magic:
        kind = KINDS.get(found, "no file of llm.c's formats")
        raise CheckpointError(
            f"{path}: magic number {found} where {magic} ({KINDS[magic]}) is expected: "
            f"this is {kind}."
        )


def write_parts(path: Path, parts: Sequence[np.ndarray]) -> int:
    """Write arrays one after the other, atomically; returns the CRC-32 of the bytes."""
    checksum = 0
    with atomic_write(path) as file:
        for part in parts:
            raw = memoryview(np.ascontiguousarray(part).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            for start in range(0, len(raw), _BLOCK_BYTES):
                block = raw[start : start + _BLOCK_BYTES]
                file.write(block)
                checksum = zlib.crc32(block, checksum)
    return checksum


def file_checksum(path: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
