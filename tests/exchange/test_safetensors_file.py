"""safetensors: what the reference reader refuses is refused, before anything is allocated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupygpt.arrays import to_bfloat16
from cupygpt.errors import CheckpointError
from cupygpt.exchange.safetensors_file import (
    MOST_HEADER_BYTES,
    TensorToWrite,
    read_tensor_table,
    write_safetensors,
)

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def file_of(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, put together by hand."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + raw + body)
    return path


def test_a_file_put_together_by_hand_is_read(tmp_path: Path) -> None:
    half, brain = VALUES.astype("<f2"), to_bfloat16(VALUES)
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("F16", [6], 24, 36),
        "a": entry("F32", [2, 3], 0, 24),
        "c": entry("BF16", [3, 2], 36, 48),
        "scalar": entry("U8", [], 48, 49),
        "empty": entry("F32", [0, 7], 49, 49),
    }
    body = VALUES.tobytes() + half.tobytes() + brain.tobytes() + b"\1"
    table = read_tensor_table(file_of(tmp_path / "a.safetensors", header, body))
    assert table.keys() == {"a", "b", "c", "scalar", "empty"}
    assert np.array_equal(table["a"].read(), VALUES)
    assert np.array_equal(table["b"].read(), VALUES.reshape(6))
    assert np.array_equal(table["c"].read(), VALUES.reshape(3, 2))
    assert table["empty"].read().shape == (0, 7)
    assert not table["scalar"].can_be_weights()
    blocks = list(table["a"].blocks(4))
    assert [len(block) for block in blocks] == [4, 2]
    assert np.array_equal(np.concatenate(blocks), VALUES.reshape(-1))


def test_what_is_written_is_read_and_aligned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = [
        TensorToWrite("one", "F32", (2, 3), lambda: VALUES),
        TensorToWrite("two", "BF16", (6,), lambda: to_bfloat16(VALUES.reshape(-1))),
    ]
    assert write_safetensors(path, tensors) == path.stat().st_size
    raw = path.read_bytes()
    assert (8 + int.from_bytes(raw[:8], "little")) % 8 == 0
    assert json.loads(raw[8:][: int.from_bytes(raw[:8], "little")])["__metadata__"] == {
        "format": "pt"
    }
    table = read_tensor_table(path)
    assert np.array_equal(table["one"].read(), VALUES)
    assert np.array_equal(table["two"].read(), VALUES.reshape(-1))


F32 = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "no safetensors file"),
        (b" {}", "no safetensors file"),
        (b'{"a":', "this is no JSON"),
        (b'{"a":' + b"[" * 90_000, "nested too deeply"),
        (b'{"\xff": 1}', "this is no JSON"),
        ({"a": 3}, "lacks a dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "lacks a dtype"),
        ({"a": entry("F99", [2], 0, 8)}, "unknown dtype 'F99'"),
        ({"a": entry("F4", [2], 0, 8)}, "unknown dtype 'F4'"),
        ({"a": entry(["F32"], [2], 0, 8)}, "unknown dtype"),
        ({"a": entry("F32", [2.0], 0, 8)}, "impossible shape"),
        ({"a": entry("F32", [-2], 0, 8)}, "impossible shape"),
        ({"a": entry("F32", [True, 2], 0, 8)}, "impossible shape"),
        ({"a": entry("F32", [1] * 9 + [2], 0, 8)}, "impossible shape"),
        ({"a": entry("F32", "2", 0, 8)}, "impossible shape"),
        ({"a": entry("F32", [2], 0)}, "impossible offsets"),
        ({"a": entry("F32", [2], -8, 0)}, "impossible offsets"),
        ({"a": entry("F32", [2], 0, 8.0)}, "impossible offsets"),
        ({"a": entry("F32", [2**40, 2**40], 0, 8)}, "has 8 bytes, but its shape and dtype need"),
        ({"a": entry("F32", [3], 0, 8)}, "has 8 bytes, but its shape and dtype need 12"),
        ({"a": entry("F32", [2], 8, 0)}, "has -8 bytes"),
        ({"a": entry("F32", [1], 4, 8)}, "begins at byte 4, not at 0: it leaves a gap"),
        ({"a": F32, "b": F32}, "overlaps the one before it"),
        ({"a": entry("F32", [1], 0, 4)}, "too long"),
        ({"a": entry("F32", [3], 0, 12)}, "cut short"),
        ({"a": F32, "__metadata__": {"format": 1}}, "its metadata should be texts"),
        ({"a": F32, "__metadata__": None}, "its metadata should be texts"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}', "'a' occurs twice"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "NaN is no number"),
        (b'{"a":{"dtype":"F32","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,8]}}', "no JSON"),
        (b'{"a\\u001b[31m":3}', r"tensor 'a\\x1b\[31m' lacks"),
    ],
)
def test_each_damage_is_named(tmp_path: Path, header: Any, message: str) -> None:
    path = file_of(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensor_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2**63, "should have 9,223,372,036,854,775,808"),
        (1000, "its header alone should have 1,000"),
        (1, "no JSON"),
    ],
)
def test_the_length_of_the_header_is_checked(tmp_path: Path, length: int, message: str) -> None:
    path = file_of(tmp_path / "bad.safetensors", {"a": F32}, bytes(8), length)
    with pytest.raises(CheckpointError, match=message):
        read_tensor_table(path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little") + b"{}")
        file.truncate(2 * 10**9)  # a sparse file
    with pytest.raises(CheckpointError, match=f"at most {MOST_HEADER_BYTES:,} are read"):
        read_tensor_table(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_stump_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "stump.safetensors"
    path.write_bytes((2).to_bytes(8, "little")[:size].ljust(size, b"{"))
    with pytest.raises(CheckpointError):
        read_tensor_table(path)


def test_a_folder_and_nothing_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="could not be read"):
            read_tensor_table(path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors", {"a": F32}, bytes(8))
    table = read_tensor_table(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        table["a"].read()
