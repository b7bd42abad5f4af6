"""llm.c training states: optimizer moments, and where the run stands.

The layout is llm.c's state_SSSSSSSS_RRRRR.bin with its shuffle section off; our own fields lie in
header ints that llm.c leaves zero. Source: llm.c train_gpt2.cu (save_state).

Ranks that share the state (ZeRO-1) write one file each, with a run of the flat vector. llm.c cuts
each layer of each tensor instead: our parts carry a version of their own, which llm.c refuses
rather than misreads. Any part can be loaded from any set of files.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.distributed.zero import Part
from cupygpt.errors import CheckpointError
from cupygpt.llmc_header import HEADER_BYTES, HEADER_INTS, check_magic, read_header, write_parts

STATE_MAGIC = 20240527
STATE_VERSION = 1
PART_VERSION = 1001
_STEP, _MASTER, _SHUFFLE = 10, 4, 5
_OURS = 64  # marker, then pairs of ints: seed, epoch, rows, best step, best loss (float64)
_PART = _OURS + 12  # two more pairs: start and stop of a part
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
    """A loaded state: moments (n,) float32 and master weights, where there are some.

    n is the number of parameters P, or the size of the part that was asked for.
    """

    progress: Progress
    m: np.ndarray
    v: np.ndarray
    master: np.ndarray | None


def state_path(folder: Path, step: int, rank: int) -> Path:
    """Where a rank's state of `step` is."""
    return folder / f"state_{step:08d}_{rank:05d}.bin"


def save_state(
    path: Path,
    progress: Progress,
    m: np.ndarray,
    v: np.ndarray,
    master: np.ndarray | None = None,
    *,
    rank: int = 0,
    shards: int = 1,
    part: Part | None = None,
) -> int:
    """Write a state, or the `part` of it that `rank` of `shards` keeps, atomically.

    Returns the CRC-32 of the file.
    """
    header = np.zeros(HEADER_INTS, np.int32)
    header[:4] = (STATE_MAGIC, STATE_VERSION if shards == 1 else PART_VERSION, shards, rank)
    if shards > 1:
        assert part is not None
        header[_PART : _PART + 4].view(np.uint64)[...] = (part.start, part.stop)
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


def load_state(path: Path, num_parameters: int, part: Part | None = None) -> StateFile:
    """Read a state for a model of `num_parameters`, or a `part` of it, ours or llm.c's.

    `path` is rank 0's file; where ranks shared the state, the others lie beside it, and are read as
    far as they overlap with the part. Raises CheckpointError on a wrong kind, another model, or a
    file that is missing, does not belong to the others or is cut short.
    """
    part = part or Part(0, num_parameters)
    header = read_header(path)
    check_magic(path, header, STATE_MAGIC)
    if header[1] == PART_VERSION:
        files = _parts_beside(path, header, num_parameters)
    else:
        _check_whole(path, header, num_parameters)
        files = [(path, Part(0, num_parameters))]
    num_arrays = 3 if header[_MASTER] else 2
    arrays = np.empty((num_arrays, part.size), np.float32)
    for file, holds in files:
        start, stop = max(part.start, holds.start), min(part.stop, holds.stop)
        for i in range(num_arrays if start < stop else 0):
            arrays[i, start - part.start : stop - part.start] = np.fromfile(
                file,
                np.float32,
                count=stop - start,
                offset=HEADER_BYTES + 4 * (i * holds.size + start - holds.start),
            )
    return StateFile(_progress(header), arrays[0], arrays[1], arrays[2] if num_arrays > 2 else None)


def _check_whole(path: Path, header: np.ndarray, num_parameters: int) -> None:
    """Raise CheckpointError unless the file holds the state of all parameters."""
    if header[1] != STATE_VERSION:
        raise CheckpointError(f"{path}: state version {header[1]}; version 1 is supported.")
    ranks, rank = int(header[2]), int(header[3])
    body_bytes = 4 * num_parameters * (3 if header[_MASTER] else 2)
    expected = HEADER_BYTES + body_bytes + _shuffle_bytes(path, header, HEADER_BYTES + body_bytes)
    actual = path.stat().st_size
    # Ranks of llm.c that share nothing each write the whole state; rank 0's will do.
    if (ranks, rank) != (1, 0) and (actual < expected or rank != 0):
        raise CheckpointError(
            f"{path}: rank {rank} of {ranks} of an llm.c run with ZeRO-1, whose parts are not read. "
            f"Start from the model file instead: -e {path.name.replace('state', 'model')[:14]}.bin"
        )
    if actual != expected:
        raise CheckpointError(
            f"{path}: {actual:,} bytes where a model of {num_parameters:,} parameters needs "
            f"{expected:,}. The file is cut short, or belongs to another model."
        )


def _parts_beside(
    first: Path, first_header: np.ndarray, num_parameters: int
) -> list[tuple[Path, Part]]:
    """The files of all ranks and what they hold; CheckpointError unless they make a whole."""
    shards, step = int(first_header[2]), int(first_header[_STEP])
    num_arrays = 3 if first_header[_MASTER] else 2
    files = []
    reached = 0
    for rank in range(shards):
        path = state_path(first.parent, step, rank)
        header = read_header(path)
        check_magic(path, header, STATE_MAGIC)
        start, stop = (int(x) for x in header[_PART : _PART + 4].view(np.uint64))
        fields = [1, 2, _STEP, _MASTER]
        if (header[fields] != first_header[fields]).any() or header[3] != rank or start != reached:
            raise CheckpointError(f"{path}: not written together with {first.name}.")
        expected = HEADER_BYTES + 4 * num_arrays * (stop - start)
        if path.stat().st_size != expected:
            raise CheckpointError(
                f"{path}: {path.stat().st_size:,} bytes where {expected:,} are announced. "
                f"The file is cut short."
            )
        files.append((path, Part(start, stop)))
        reached = stop
    if reached != num_parameters:
        raise CheckpointError(
            f"{first}: the files of {shards} ranks hold {reached:,} parameters, the model has "
            f"{num_parameters:,}. They belong to another model."
        )
    return files


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
