"""run.json: what a run was asked to do, on what, and in which environment."""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import cupygpt
from cupygpt.errors import CheckpointError
from cupygpt.files import atomic_write

RECORD = "run.json"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Save the run's record (settings, model, data, environment) as JSON."""
    with atomic_write(folder / RECORD) as file:
        file.write(json.dumps(record, indent=2).encode())


def update_record(folder: Path, **values: Any) -> None:
    """Set entries of a run's record. Raises CheckpointError if it is damaged."""
    write_record(folder, {**read_record(folder), **values})


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run. Raises CheckpointError if it is damaged."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for part in ("config", "model", "data"):
            if not isinstance(record[part], dict):
                raise TypeError(part)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}). Start a new run from the weights in {path.parent}."
        ) from error
    return record


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


def environment(device: str) -> dict[str, str]:
    """What the numbers of a run depend on, in addition to its settings."""
    return {
        "cupygpt": cupygpt.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": processor_name(),
        "device": device,
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
