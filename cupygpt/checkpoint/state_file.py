"""The training state, all that a run needs to continue as if it had never stopped, and its file.

The file's layout is llm.c's state_SSSSSSSS_RRRRR.bin with its shuffle section off. Our own fields
are in header ints that llm.c leaves zero. Source: llm.c train_gpt2.cu (save_state).

With ZeRO-1 every rank writes one file with its zero shard. llm.c shards each layer of each tensor
instead, so these files have another version number: llm.c refuses them and does not misread them.
Any zero shard can be loaded from any set of files, whatever number of ranks wrote it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.console.paste import shell_word
from cupygpt.data.loader import START, Position
from cupygpt.distributed.zero import ZeroShard
from cupygpt.errors import CheckpointError
from cupygpt.files import HEADER_BYTES, HEADER_INTS, FileKind, check_kind, read_header, write_arrays

STATE_VERSION = 1
SHARD_VERSION = 1001

# Indices of header ints: llm.c's first, then ours, which hold pairs of ints as 64-bit numbers.
_VERSION, _WORLD, _RANK, _MASTER, _SHUFFLE, _STEP = 1, 2, 3, 4, 5, 10
_MARKER_AT, _COUNTERS, _BEST_LOSS, _SHARD = 64, 66, 74, 76
_MARKER = 0x43475054
_SHUFFLE_RNG_BYTES = 2520


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` optimizer steps.

    `position` is where the training data continues. It is None for a state written by llm.c, whose
    data order cannot be continued. `best_step` is the step of the lowest validation loss so far,
    `best_loss` that loss in nats per token.
    """

    step: int
    seed: int = 0
    position: Position | None = START
    best_step: int = 0
    best_loss: float = math.inf


@dataclass(frozen=True)
class TrainState:
    """A run's progress and its arrays, as one rank saves or loads them.

    `params` (P,): all parameters in the order of the model file, float32 or bfloat16 (uint16) when
    they are saved, always float32 when they were loaded. `m`, `v` (n,) float32: AdamW's moments.
    `master` (n,) float32: what bfloat16 parameters were rounded from; None if the run has no such
    copy. An array is None on ranks that do not save it:

    | | params | m, v, master | n |
    |---|---|---|---|
    | saved by equal ranks | rank 0 | rank 0 | P |
    | saved with ZeRO-1 | rank 0 | every rank its shard | size of `zero_shard` |
    | loaded without ZeRO-1 | every rank | every rank | P |
    | loaded with ZeRO-1 | every rank | every rank its shard | size of `zero_shard` |

    `zero_shard` says which elements of the flat parameters `m`, `v` and `master` belong to; None
    means all P.
    """

    progress: Progress
    params: np.ndarray | None = None
    m: np.ndarray | None = None
    v: np.ndarray | None = None
    master: np.ndarray | None = None
    zero_shard: ZeroShard | None = None

    def float32_weights(self) -> np.ndarray:
        """The float32 weights (P,) that a run continues from.

        The master copy wins over `params`, which are its rounded values. With ZeRO-1 a rank has
        only a shard of the master copy: then these are `params`, and `master` gives the shard.
        """
        is_whole = self.master is not None and self.zero_shard is None
        weights = self.master if is_whole else self.params
        assert weights is not None, "a loaded state has parameters on every rank"
        return weights


def state_path(folder: Path, step: int, rank: int) -> Path:
    """The state file of a rank at `step`."""
    return folder / f"state_{step:08d}_{rank:05d}.bin"


def state_files(folder: Path, step: int) -> list[Path]:
    """The existing state files of all ranks at `step`."""
    return sorted(folder.glob(f"state_{step:08d}_?????.bin"))


def save_state(path: Path, state: TrainState, *, rank: int = 0, num_shards: int = 1) -> int:
    """Write moments, master weights and progress atomically; returns the CRC-32 of the file.

    With `num_shards` above 1 the arrays are the `state.zero_shard` of `rank`.
    """
    assert state.m is not None
    assert state.v is not None
    progress, shard = state.progress, state.zero_shard
    header = np.zeros(HEADER_INTS, np.int32)
    header[0] = FileKind.STATE.magic
    header[_VERSION] = STATE_VERSION if num_shards == 1 else SHARD_VERSION
    header[_WORLD], header[_RANK] = num_shards, rank
    header[_MASTER] = state.master is not None
    header[_STEP] = progress.step
    header[_MARKER_AT] = _MARKER
    position = progress.position or START
    counters = (progress.seed, position.epoch, position.rows, progress.best_step)
    header[_COUNTERS : _COUNTERS + 8].view(np.uint64)[...] = counters
    header[_BEST_LOSS : _BEST_LOSS + 2].view(np.float64)[...] = progress.best_loss
    if num_shards > 1:
        assert shard is not None
        header[_SHARD : _SHARD + 4].view(np.uint64)[...] = (shard.start, shard.stop)
    master = [] if state.master is None else [state.master]
    return write_arrays(path, [header, state.m, state.v, *master])


def read_progress(path: Path) -> Progress:
    """Where the run stood, from the header alone. Raises CheckpointError."""
    return _progress(path, _read_state_header(path))


def num_files(path: Path) -> int:
    """The number of state files of a checkpoint, from rank 0's `path`. Raises CheckpointError."""
    header = _read_state_header(path)
    return int(header[_WORLD]) if header[_VERSION] == SHARD_VERSION else 1


def load_state(path: Path, num_parameters: int, zero_shard: ZeroShard | None = None) -> TrainState:
    """Read the state of a model of `num_parameters`, or a zero shard of it, ours or llm.c's.

    `path` is rank 0's file. With ZeRO-1 the files of the other ranks are next to it; each is read
    as far as it overlaps with the wanted shard. The result has no `params`: they are in the model
    file. Raises CheckpointError for a wrong kind of file, another model, or a file that is missing,
    does not belong to the others or is cut short.
    """
    wanted = zero_shard or ZeroShard(0, num_parameters)
    header = _read_state_header(path)
    if header[_VERSION] == SHARD_VERSION:
        files = _shard_files(path, header, num_parameters)
    else:
        _check_whole(path, header, num_parameters)
        files = [_ShardFile(path, ZeroShard(0, num_parameters))]
    arrays = np.empty((_num_arrays(header), wanted.size), np.float32)
    for file in files:
        file.read_overlap(wanted, arrays)
    if not math.isfinite(float(np.sum(arrays, dtype=np.float64))):
        raise CheckpointError(f"{path}: the state holds NaN or infinity.")
    m, v, *master = arrays
    return TrainState(
        _progress(path, header),
        m=m,
        v=v,
        master=master[0] if master else None,
        zero_shard=zero_shard,
    )


@dataclass(frozen=True)
class _ShardFile:
    """A state file and the elements of the flat vector that its arrays hold."""

    path: Path
    shard: ZeroShard

    def read_overlap(self, wanted: ZeroShard, out: np.ndarray) -> None:
        """Fill the columns of `out` (arrays, wanted.size) that this file holds."""
        start, stop = max(wanted.start, self.shard.start), min(wanted.stop, self.shard.stop)
        if start >= stop:
            return
        for i, array in enumerate(out):
            array[start - wanted.start : stop - wanted.start] = np.fromfile(
                self.path,
                np.float32,
                count=stop - start,
                offset=HEADER_BYTES + 4 * (i * self.shard.size + start - self.shard.start),
            )


def _read_state_header(path: Path) -> np.ndarray:
    header = read_header(path)
    check_kind(path, header, FileKind.STATE)
    return header


def _num_arrays(header: np.ndarray) -> int:
    """m, v and, in some files, the master weights."""
    return 3 if header[_MASTER] else 2


def _check_whole(path: Path, header: np.ndarray, num_parameters: int) -> None:
    """Raise CheckpointError unless the file holds the state of all parameters."""
    if header[_VERSION] != STATE_VERSION:
        raise CheckpointError(f"{path}: state version {header[_VERSION]}; version 1 is supported.")
    ranks, rank = int(header[_WORLD]), int(header[_RANK])
    body_bytes = 4 * num_parameters * _num_arrays(header)
    expected = HEADER_BYTES + body_bytes + _shuffle_bytes(path, header, HEADER_BYTES + body_bytes)
    actual = path.stat().st_size
    # Without ZeRO-1 every rank of llm.c writes the whole state; rank 0's file is enough.
    if (ranks, rank) != (1, 0) and (actual < expected or rank != 0):
        name = path.name.replace("state", "model")[: len("model_SSSSSSSS")] + ".bin"
        raise CheckpointError(
            f"{path}: rank {rank} of {ranks} of an llm.c run with ZeRO-1, whose shards cannot be "
            f"read. Start from the model file instead: -e {shell_word(path.with_name(name))}"
        )
    if actual != expected:
        raise CheckpointError(
            f"{path}: {actual:,} bytes, but a model of {num_parameters:,} parameters needs "
            f"{expected:,}. The file is cut short, or belongs to another model."
        )


def _shard_files(first: Path, first_header: np.ndarray, num_parameters: int) -> list[_ShardFile]:
    """The files of all ranks; CheckpointError unless they belong together and are complete."""
    num_shards, step = int(first_header[_WORLD]), int(first_header[_STEP])
    files: list[_ShardFile] = []
    reached = 0
    for rank in range(num_shards):
        path = state_path(first.parent, step, rank)
        header = _read_state_header(path)
        start, stop = (int(x) for x in header[_SHARD : _SHARD + 4].view(np.uint64))
        common = [_VERSION, _WORLD, _STEP, _MASTER]
        is_next = header[_RANK] == rank and start == reached
        if (header[common] != first_header[common]).any() or not is_next:
            raise CheckpointError(f"{path}: not written together with {first.name}.")
        expected = HEADER_BYTES + 4 * _num_arrays(header) * (stop - start)
        actual = path.stat().st_size
        if actual != expected:
            raise CheckpointError(
                f"{path}: {actual:,} bytes, but its header announces {expected:,}. "
                f"The file is cut short."
            )
        files.append(_ShardFile(path, ZeroShard(start, stop)))
        reached = stop
    if reached != num_parameters:
        raise CheckpointError(
            f"{first}: the files of {num_shards} ranks hold {reached:,} parameters, the model has "
            f"{num_parameters:,}. They belong to another model."
        )
    return files


def _progress(path: Path, header: np.ndarray) -> Progress:
    step = int(header[_STEP])
    if header[_MARKER_AT] != _MARKER:
        if header[_MARKER_AT : _SHARD + 4].any():
            raise CheckpointError(f"{path}: damaged; no program writes such a header.")
        return Progress(step, position=None)
    counters = header[_COUNTERS : _COUNTERS + 8].view(np.uint64)
    seed, epoch, rows, best_step = (int(x) for x in counters)
    best_loss = float(header[_BEST_LOSS : _BEST_LOSS + 2].view(np.float64)[0])
    return Progress(step, seed, Position(epoch, rows), best_step, best_loss)


def _shuffle_bytes(path: Path, header: np.ndarray, offset: int) -> int:
    """Length in bytes of the loader section that llm.c appends to the state of a shuffled run."""
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
