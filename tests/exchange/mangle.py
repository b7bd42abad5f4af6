"""Files that are damaged at random."""

import json
from typing import Any

import numpy as np

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
