"""llm.c training states: optimizer moments, and where the run stands.

The layout is llm.c's state_SSSSSSSS_RRRRR.bin with its shuffle section off; our own fields lie in
header ints that llm.c leaves zero. Source: llm.c train_gpt2.cu (save_state).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.errors import CheckpointError
from cupygpt.headers import HEADER_BYTES, HEADER_INTS, check_magic, read_header, write_parts

STATE_MAGIC = 20240527
STATE_VERSION = 1
_STEP, _MASTER, _SHUFFLE = 10, 4, 5
_OURS = 64  # marker, then pairs of ints: seed, epoch, rows, best step, best loss (float64)
_MARKER = 0x43475054
_SHUFFLE_RNG_BYTES = 2520


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` optimizer steps.

    `epoch` and `rows` are the loader's position, or None for a state written by llm.c, whose data
    order cannot be continued.
    """

    step: int
    seed: int = 0
    epoch: int | None = 0
    rows: int | None = 0
    best_step: int = 0
    best_loss: float = math.inf


@dataclass(frozen=True)
class StateFile:
    """A loaded state: moments (P,) float32 and master weights, where there are some."""

    progress: Progress
    m: np.ndarray
    v: np.ndarray
    master: np.ndarray | None


def save_state(
    path: Path, progress: Progress, m: np.ndarray, v: np.ndarray, master: np.ndarray | None = None
) -> int:
    """Write a state atomically; returns the CRC-32 of the file."""
    header = np.zeros(HEADER_INTS, np.int32)
    header[:4] = (STATE_MAGIC, STATE_VERSION, 1, 0)
    header[_MASTER] = master is not None
    header[_STEP] = progress.step
    header[_OURS] = _MARKER
    counters = (progress.seed, progress.epoch or 0, progress.rows or 0, progress.best_step)
    header[_OURS + 2 : _OURS + 10].view(np.uint64)[...] = counters
    header[_OURS + 10 : _OURS + 12].view(np.float64)[...] = progress.best_loss
    return write_parts(path, [header, m, v] + ([] if master is None else [master]))


def read_progress(path: Path) -> Progress:
    """Where the run stood, from the header alone. Raises CheckpointError."""
    header = read_header(path)
    check_magic(path, header, STATE_MAGIC)
    return _progress(header)


def load_state(path: Path, num_parameters: int) -> StateFile:
    """Read a state for a model of `num_parameters`, ours or llm.c's.

    Raises CheckpointError on a wrong kind, another model or a file that is cut short.
    """
    header = read_header(path)
    check_magic(path, header, STATE_MAGIC)
    if header[1] != STATE_VERSION:
        raise CheckpointError(f"{path}: state version {header[1]}; version 1 is supported.")
    ranks, rank = int(header[2]), int(header[3])
    if (ranks, rank) != (1, 0):
        raise CheckpointError(
            f"{path}: rank {rank} of {ranks}; this version resumes runs of one rank. "
            f"Start from the model file instead: -e {path.name.replace('state', 'model')[:14]}.bin"
        )
    num_arrays = 3 if header[_MASTER] else 2
    body_bytes = 4 * num_parameters * num_arrays
    expected = HEADER_BYTES + body_bytes + _shuffle_bytes(path, header, HEADER_BYTES + body_bytes)
    actual = path.stat().st_size
    if actual != expected:
        raise CheckpointError(
            f"{path}: {actual:,} bytes where a model of {num_parameters:,} parameters needs "
            f"{expected:,}. The file is cut short, or belongs to another model."
        )
    body = np.fromfile(path, np.float32, count=num_parameters * num_arrays, offset=HEADER_BYTES)
    arrays = body.reshape(num_arrays, num_parameters)
    master = arrays[2] if num_arrays == 3 else None
    return StateFile(_progress(header), arrays[0], arrays[1], master)


def _progress(header: np.ndarray) -> Progress:
    step = int(header[_STEP])
    if header[_OURS] != _MARKER:
        return Progress(step, epoch=None, rows=None)
    seed, epoch, rows, best_step = (int(x) for x in header[_OURS + 2 : _OURS + 10].view(np.uint64))
    best_loss = float(header[_OURS + 10 : _OURS + 12].view(np.float64)[0])
    return Progress(step, seed, epoch, rows, best_step, best_loss)


def _shuffle_bytes(path: Path, header: np.ndarray, offset: int) -> int:
    """Length of the loader section that llm.c appends to the state of a shuffled run."""
    if not header[_SHUFFLE]:
        return 0
    total = 8
    with path.open("rb") as file:
        file.seek(offset)
        for _ in range(2):  # shards, then samples: a uint64 count and that many int32
            count = np.frombuffer(file.read(8), "<u8")
            if count.size == 0:
                return total
            file.seek(4 * int(count[0]), 1)
            total += 4 * int(count[0])
    return total + 8 + _SHUFFLE_RNG_BYTES
