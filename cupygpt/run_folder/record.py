"""run.json: what a run was asked to do, on what, and in which environment."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cupygpt
from cupygpt.errors import CheckpointError
from cupygpt.files import atomic_write

RECORD = "run.json"
TOKENIZER_COPY = "run.tokenizer"
"""The run's own copy of a tokenizer that came from a file."""


def write_record(folder: Path, record: dict[str, Any], decisive: Sequence[str]) -> None:
    """Save the run's record (settings, model, data, environment) as JSON, atomically.

    A checksum covers the entries named in `decisive`, which decide over the numbers of the run:
    `model`, or `config.seed` for one setting.
    """
    names = list(decisive)
    record = {**record, "checksum": {"of": names, "sha256": _checksum(record, names)}}
    with atomic_write(folder / RECORD) as file:
        file.write(json.dumps(record, indent=2).encode())


def update_record(folder: Path, **values: Any) -> None:
    """Set entries of a run's record. Raises CheckpointError if it is damaged."""
    record = read_record(folder)
    write_record(folder, {**record, **values}, record.get("checksum", {}).get("of", ()))


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run. Raises CheckpointError if it is damaged or was changed by hand."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, (kind, words) in _PARTS.items():
            if not kind(record[name] if name in _NEEDED else record.get(name, _ABSENT)):
                raise TypeError(f"'{name}' should be {words}")
        checksum = record.get("checksum")
        is_changed = checksum is not None and checksum["sha256"] != _checksum(
            record, checksum["of"]
        )
    except KeyError as error:
        raise CheckpointError(_damaged(path, f"{error} is missing")) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(_damaged(path, str(error))) from error
    if is_changed:
        raise CheckpointError(
            f"{path}: a setting that decides over the numbers of this run was changed after the "
            f"run wrote it (the checksum is another one). Bring the old file back; or, to continue "
            f'with the settings as they now are, remove its entry "checksum".'
        )
    return record


def written_by(record: dict[str, Any]) -> str:
    """The version that wrote a record, in words."""
    return f"cupygpt {record.get('environment', {}).get('cupygpt', 'of an unknown version')}"


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path}: damaged ({reason}). The weights can still be used: name one of the model files, "
        f"{path.parent / 'model_SSSSSSSS.bin'}."
    )


_ABSENT = object()
_NEEDED = ("config", "model", "data")


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


def _is_validation(value: Any) -> bool:
    if value is None:
        return True
    return _is_dict(value) and _is_count(value.get("rows")) and type(value.get("evenly")) is bool


def _is_list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _or_absent(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is _ABSENT or kind(value)


_PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (_is_dict, "an object"),
    "model": (_is_dict, "an object"),
    "data": (_is_dict, "an object"),
    "source": (_or_absent(lambda value: value is None or _is_dict(value)), "null, or an object"),
    "precision": (_or_absent(_is_text), "a text"),
    "row_order": (_or_absent(_is_text), "a text"),
    "ranks": (_or_absent(_is_count), "a positive whole number"),
    "tokens_per_step": (_or_absent(_is_count), "a positive whole number"),
    "trained_length": (_or_absent(_is_count), "a positive whole number"),
    "steps": (_or_absent(lambda value: value is None or _is_count(value)), "a number of steps"),
    "validation": (_or_absent(_is_validation), "null, or an object with rows and evenly"),
    "environment": (_or_absent(_is_dict), "an object"),
    "extensions": (_or_absent(_is_list_of(_is_count)), "a list of positive whole numbers"),
    "resumes": (_or_absent(_is_list_of(_is_dict)), "a list of objects"),
    "checksum": (_or_absent(_is_dict), "an object"),
}
"""What run.json holds: a test of each part, and what it should be in words."""


def _checksum(record: dict[str, Any], names: Sequence[str]) -> str:
    """The SHA-256 of some entries, however the file is laid out."""
    values = []
    for name in names:
        value: Any = record
        for key in name.split("."):
            value = value[key]
        values.append([name, value])
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def processor_name() -> str:
    """The processor and the instructions that NumPy uses of it: "AMD EPYC 9654, X86_V4"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    try:
        found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    except (TypeError, KeyError):  # before NumPy 1.26
        found = []
    return ", ".join([name, *found[-1:]])


def environment(device: str, blas: str | None) -> dict[str, str]:
    """What the numbers of a run depend on, in addition to its settings.

    `blas` computes the matrix products of a run on the CPU.
    """
    of_cpu = {} if blas is None else {"blas": blas}
    return {
        "cupygpt": cupygpt.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": processor_name(),
        "device": device,
        **of_cpu,
        "command": " ".join(sys.argv),
        "folder": os.path.abspath(os.curdir),  # noqa: PTH100 (a path as it was written)
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
