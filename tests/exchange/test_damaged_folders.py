"""500 damaged folders: one message each, and no memory beyond the size of the files."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.exchanged_models import random_weights
from exchange.hugging_face_files import TINY, write_folder

from cupygpt.errors import CheckpointError
from cupygpt.exchange.hf_folder import load_hugging_face

COUNT = 500
SLACK_BYTES = 1 << 20
"""For Python's own objects: the files have 70 kB."""

ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        3.5,
        10**9,
        2**62,
        2**64,
        10**30,
        1e308,
        "",
        "x",
        "../x",
        "F32",
        "\x1b[2J",
    ),
    *([], [0], [2**62, 2**62], [[[]]], {}, {"a": 1}),
]


def mangle_bytes(rng: np.random.Generator, raw: bytes) -> bytes:
    """Cut, stretch, swap or overwrite."""
    kind, at = rng.integers(5), int(rng.integers(len(raw)))
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw + bytes(int(rng.integers(1, 5000)))
    if kind == 2:
        return raw[:at] + raw[at + int(rng.integers(1, 50)) :]
    if kind == 3:
        return raw[:at] + rng.bytes(int(rng.integers(1, 50))) + raw[at:]
    return rng.bytes(8) + raw[8:]


def mangle_value(rng: np.random.Generator, value: Any) -> Any:
    """A JSON value with one of its parts replaced, removed, or under another name."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[int(rng.integers(len(value)))]
        kind = rng.integers(6)
        if kind == 0:
            return {name: part for name, part in value.items() if name != key}
        if kind == 1:
            return {(name + "x" if name == key else name): part for name, part in value.items()}
        return {**value, key: mangle_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        return [*value[:at], mangle_value(rng, value[at]), *value[at + 1 :]]
    return ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]


def mangle_header(rng: np.random.Generator, raw: bytes) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(mangle_value(rng, json.loads(raw[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


def mangle_json(rng: np.random.Generator, raw: bytes) -> bytes:
    if rng.random() < 0.3:
        return mangle_bytes(rng, raw)
    return json.dumps(mangle_value(rng, json.loads(raw))).encode()


Mangle = Callable[[np.random.Generator, bytes], bytes]
CASES: list[tuple[str, Mangle]] = [
    ("model-00001-of-00002.safetensors", mangle_bytes),
    ("model-00002-of-00002.safetensors", mangle_header),
    ("model.safetensors.index.json", mangle_json),
    ("config.json", mangle_json),
]


def test_500_damaged_folders_give_one_message_each(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    write_folder(tmp_path, weights, num_files=2, index=True)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    total = sum(map(len, whole.values()))
    rng = np.random.default_rng(16)
    refused = harmless = 0
    tracemalloc.start()
    try:
        while refused < COUNT:
            name, mangle = CASES[(refused + harmless) % len(CASES)]
            damaged = mangle(rng, whole[name])
            (tmp_path / name).write_bytes(damaged)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                load_hugging_face(tmp_path)
            except CheckpointError as error:
                refused += 1
                check_message(str(error), tmp_path)
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < total + len(damaged) + SLACK_BYTES, (peak, str(error))
            else:  # a renamed setting, other weights, another total size
                harmless += 1
            (tmp_path / name).write_bytes(whole[name])
    finally:
        tracemalloc.stop()
    assert harmless < COUNT
    assert load_hugging_face(tmp_path).parameters.tobytes() == weights.tobytes()


def check_message(text: str, folder: Path) -> None:
    """One short line that names the place, and cannot control a terminal."""
    assert str(folder) in text
    assert text.isprintable(), repr(text)
    assert len(text) < 600 + 2 * len(str(folder)), text
    assert text.endswith(".")


def test_sizes_that_would_fill_the_memory_are_refused_unread(tmp_path: Path) -> None:
    """A consistent lie about terabytes: config, shapes and offsets agree, the file is short."""
    write_folder(tmp_path, random_weights(TINY))
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, end = json.loads(raw[8 : 8 + size]), 0
    for entry in header.values():
        entry["shape"] = [extent * 2**10 for extent in entry["shape"]]
        stop = end + 4 * int(np.prod(entry["shape"], dtype=object))
        entry["data_offsets"], end = [end, stop], stop
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"cut short"):
            load_hugging_face(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < SLACK_BYTES
    finally:
        tracemalloc.stop()
