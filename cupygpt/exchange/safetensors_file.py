"""safetensors files: a JSON header and arrays without gaps, read with every number checked.

Bytes: uint64 n | n bytes of JSON | the arrays. The JSON maps each name to its dtype, its shape and
its first and last byte, counted from the end of the header. Little-endian, row-major. Source: the
format's description and its reference reader (github.com/huggingface/safetensors).
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.arrays import from_bfloat16
from cupygpt.errors import CheckpointError
from cupygpt.files import check_can_end, write_arrays
from cupygpt.strict_json import is_count, parse_object, quoted

MOST_HEADER_BYTES = 1 << 20
"""96 layers of GPT-2 take 0.2 MB."""
MOST_TENSORS = 10_000
MOST_DIMENSIONS = 8

_LENGTH_BYTES = 8
_ELEMENT_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_STORED_AS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""What weights may be."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `start` counts from the beginning of the file. Its bytes are there."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def can_be_weights(self) -> bool:
        """Whether `read` knows the dtype."""
        return self.dtype in _STORED_AS

    def read(self) -> np.ndarray:
        """The values as float32, exact. Raises CheckpointError if the file cannot be read."""
        values = self._read(0, self.size)
        exact = from_bfloat16(values) if self.dtype == "BF16" else values.astype(np.float32)
        return exact.reshape(self.shape)

    def blocks(self, elements: int) -> Iterator[np.ndarray]:
        """The values as they are stored (n,), so many at a time. Raises CheckpointError."""
        for start in range(0, self.size, elements):
            yield self._read(start, min(elements, self.size - start))

    def _read(self, start: int, count: int) -> np.ndarray:
        """Some values as they are stored; bfloat16 as uint16."""
        dtype = _STORED_AS[self.dtype]
        try:
            values = np.fromfile(
                self.file, dtype, count, offset=self.start + start * dtype.itemsize
            )
        except OSError as error:
            raise _unreadable(self.file, error) from error
        if values.size != count:
            raise CheckpointError(f"{self.file}: the file was changed while it was read.")
        return values


def read_tensor_table(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name. Reads the header alone; every number in it is checked.

    The tensors fill the file without gap and overlap, so their sizes add up to its size. Raises
    CheckpointError for a damaged file.
    """
    check_can_end(path, CheckpointError)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            fits = length <= min(MOST_HEADER_BYTES, size - _LENGTH_BYTES)
            raw = file.read(length) if fits else b""
    except OSError as error:
        raise _unreadable(path, error) from error
    if length > size - _LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: {size:,} bytes, but its header alone should have {length:,}. The file is cut "
            f"short, or no safetensors file; copy it again."
        )
    if length > MOST_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: a header of {length:,} bytes; at most {MOST_HEADER_BYTES:,} are read. "
            f"The file is damaged, or not a GPT-2."
        )
    if raw[:1] != b"{":
        raise CheckpointError(f"{path}: this is no safetensors file. Copy it again.")
    header = parse_object(path, raw)
    _check_metadata(path, header.pop("__metadata__", {}))
    if len(header) > MOST_TENSORS:
        raise CheckpointError(
            f"{path}: {len(header):,} tensors; at most {MOST_TENSORS:,} are read."
        )
    return _locate(path, header, _LENGTH_BYTES + length, size)


def _locate(path: Path, header: dict[str, Any], body: int, size: int) -> dict[str, StoredTensor]:
    """Where the tensors of `header` lie in a file of `size` bytes, whose body starts at `body`."""
    spans = {name: _parse_entry(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != end:
            what = "overlaps the one before it" if begin < end else "leaves a gap before it"
            raise _damaged(path, name, f"begins at byte {begin:,}, not at {end:,}: it {what}")
        end = stop
    if body + end != size:
        raise CheckpointError(
            f"{path}: {size:,} bytes, but its tensors end at byte {body + end:,}. The file is "
            f"{'cut short' if size < body + end else 'too long'}; copy it again."
        )
    return {
        name: StoredTensor(path, dtype, shape, body + begin)
        for name, (dtype, shape, begin, _) in spans.items()
    }


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, first and last byte of one tensor."""
    if type(entry) is not dict or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(path, name, "lacks a dtype, a shape or its offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in _ELEMENT_BYTES:
        raise _damaged(path, name, f"has the unknown dtype {quoted(dtype)}")
    if type(shape) is not list or len(shape) > MOST_DIMENSIONS or not all(map(is_count, shape)):
        raise _damaged(path, name, f"has the impossible shape {quoted(shape)}")
    if type(offsets) is not list or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise _damaged(path, name, f"has the impossible offsets {quoted(offsets)}")
    begin, stop = offsets
    wanted = math.prod(shape) * _ELEMENT_BYTES[dtype]
    if stop - begin != wanted:
        raise _damaged(
            path, name, f"has {stop - begin:,} bytes, but its shape and dtype need {wanted:,}"
        )
    return dtype, tuple(shape), begin, stop


def _check_metadata(path: Path, metadata: Any) -> None:
    is_text = type(metadata) is dict and all(type(value) is str for value in metadata.values())
    if not is_text:
        raise CheckpointError(f"{path}: damaged; its metadata should be texts. Copy it again.")


def _damaged(path: Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the tensor {quoted(name)} {what}. The file is damaged; copy it again."
    )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: could not be read ({error.strerror or error}). Check the path and its "
        f"permissions."
    )


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a new file; `values` makes it when its turn comes (bfloat16 as uint16)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * _ELEMENT_BYTES[self.dtype]


def write_safetensors(path: Path, tensors: Sequence[TensorToWrite]) -> int:
    """Write a file atomically; returns its size. Raises RunError if the disk refuses.

    One tensor at a time is in memory. The header is padded so that each tensor of 4-byte elements
    starts at a multiple of 4.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.num_bytes],
        }
        end += tensor.num_bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    head = np.frombuffer(len(raw).to_bytes(_LENGTH_BYTES, "little") + raw, np.uint8)
    write_arrays(path, _in_turn(head, tensors))
    return len(head) + end


def _in_turn(head: np.ndarray, tensors: Sequence[TensorToWrite]) -> Iterator[np.ndarray]:
    yield head
    for tensor in tensors:
        values = tensor.values()
        assert values.shape == tensor.shape, (tensor.name, values.shape)
        assert values.nbytes == tensor.num_bytes, (tensor.name, values.dtype)
        yield values
