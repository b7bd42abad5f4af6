"""Checkpoints in a run folder: complete or absent, newest first, a few kept.

A checkpoint is a set of files: model_SSSSSSSS.bin, state_SSSSSSSS_00000.bin (with ZeRO-1 one for
each rank) and, written last, DONE_SSSSSSSS, which says that the set is complete, as in llm.c. There
it is empty, and only its name counts. Ours lists the other files of the set with their checksums,
and the step. A state file that we wrote must have such a list.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.checkpoint.model_file import ModelFile, read_model, save_model
from cupygpt.checkpoint.state_file import (
    TrainState,
    load_state,
    num_files,
    read_progress,
    save_state,
    state_files,
    state_path,
)
from cupygpt.config import GPTConfig
from cupygpt.distributed.ranks import ONE_RANK, Ranks, broadcast_object
from cupygpt.distributed.zero import shard_of
from cupygpt.errors import CheckpointError
from cupygpt.files import (
    PARTIAL_SUFFIX,
    FileKind,
    atomic_write,
    check_kind,
    file_checksum,
    is_same_file,
    read_header,
    remove_file,
)

_CHECKPOINT_FILE = re.compile(
    r"(?:model|state|DONE)_(?P<step>\d{8})(?:_\d{5})?(?:\.bin)?"
    rf"(?P<partial>{re.escape(PARTIAL_SUFFIX)})?"
)
"""Any file of a checkpoint, or the half-written one beside it."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model's shape, the precision of its file, and the training state.

    `warnings` says what was repaired while loading, one sentence each.
    """

    config: GPTConfig
    precision: str
    state: TrainState
    warnings: tuple[str, ...]


def save_checkpoint(
    folder: Path, config: GPTConfig, state: TrainState, *, ranks: Ranks = ONE_RANK
) -> None:
    """Write the checkpoint of `state.progress.step`.

    All `ranks` call; `TrainState` says which rank gives which arrays. bfloat16 parameters (uint16)
    make a version 5 model file. DONE follows when the files of all ranks are complete. Raises
    RunError if the disk refuses. Earlier checkpoints stay as they are, whatever happens.
    """
    step = state.progress.step
    model, _, done = _paths(folder, step)
    if ranks.rank == 0:
        # A resumed run may save a step again. The old set ends here, so that DONE never vouches for
        # a mixture of old and new files.
        for path in (done, *state_files(folder, step)):
            remove_file(path)
    ranks.all_gather_object("the old set has ended")
    checksums = {}
    if state.params is not None:
        precision = "bf16" if state.params.dtype == np.uint16 else "fp32"
        checksums[model.name] = save_model(model, config, state.params, precision)
    if state.m is not None:
        path = state_path(folder, step, ranks.rank)
        num_shards = ranks.world if state.zero_shard is not None else 1
        checksums[path.name] = save_state(path, state, rank=ranks.rank, num_shards=num_shards)
    everyone = ranks.all_gather_object(checksums)
    if ranks.rank == 0:
        written = {name: crc for files in everyone for name, crc in files.items()}
        _write_done(folder, step, written)


def load_checkpoint(
    folder: Path, step: int, *, ranks: Ranks = ONE_RANK, zero_stage: int = 0
) -> Checkpoint:
    """Read and verify the checkpoint of `step`, whatever number of ranks wrote it.

    All `ranks` call. With `zero_stage` 1 each rank gets its zero shard of the optimizer state, else
    all of it. Every rank gets the parameters. Raises CheckpointError that says how to go back.
    """
    model, first_state, done = _paths(folder, step)
    try:
        if ranks.rank == 0:
            _verify_checkpoint(folder, step)  # once for all ranks, because it reads every file
        ranks.all_gather_object("verified")
        loaded = read_model(model)
        P = loaded.config.num_parameters
        shards = zero_stage and ranks.world > 1
        state = load_state(first_state, P, shard_of(P, ranks.world, ranks.rank) if shards else None)
        if state.progress.step != step:
            raise CheckpointError(f"{first_state}: the state of step {state.progress.step}.")
    except CheckpointError as error:
        earlier = [other for other in checkpoint_steps(folder) if other < step]
        advice = (
            f"Delete {done} to continue from step {earlier[-1]}."
            if earlier
            else "There is no earlier checkpoint in this folder."
        )
        raise CheckpointError(f"{error} {advice}") from error
    state = replace(state, params=loaded.parameters)
    return Checkpoint(loaded.config, loaded.precision, state, loaded.warnings)


def load_newest(folder: Path, *, ranks: Ranks, zero_stage: int) -> Checkpoint:
    """The checkpoint from which the run in `folder` continues; see `load_checkpoint`."""
    step = broadcast_object(ranks, checkpoint_steps(folder)[-1])
    return load_checkpoint(folder, step, ranks=ranks, zero_stage=zero_stage)


def load_model(path: Path) -> ModelFile:
    """Read a model file and, if it belongs to a checkpoint, compare its checksum before.

    Raises CheckpointError.
    """
    check_kind(path, read_header(path), FileKind.MODEL)
    _verify_model(path)
    return read_model(path)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a DONE file, in ascending order."""
    matches = (re.fullmatch(r"DONE_(\d{8})", path.name) for path in folder.glob("DONE_*"))
    return sorted(int(match[1]) for match in matches if match)


def best_step(folder: Path) -> int:
    """The step with the lowest validation loss if its checkpoint is kept, else the newest step.

    Raises CheckpointError if the folder holds no complete checkpoint.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder}: the folder holds no complete checkpoint.")
    best = validated_best_step(folder)
    return best if best in steps else steps[-1]


def validated_best_step(folder: Path) -> int | None:
    """The step with the lowest validation loss, kept or not; None if nothing was validated.

    The folder must hold a complete checkpoint.
    """
    progress = read_progress(_paths(folder, checkpoint_steps(folder)[-1])[1])
    return progress.best_step if math.isfinite(progress.best_loss) else None


def model_path(folder: Path, step: int) -> Path:
    """The model file of `step`."""
    return folder / f"model_{step:08d}.bin"


def done_path(folder: Path, step: int) -> Path:
    """The DONE file of `step`."""
    return folder / f"DONE_{step:08d}"


def prune_checkpoints(
    folder: Path, keep: int, best_step: int | None, *, keep_every: int = 0
) -> None:
    """Delete all checkpoints but the newest `keep` (0 keeps all) and that of `best_step`.

    Those of a step that is a multiple of `keep_every` stay too, unless it is 0.

    Raises RunError if a file cannot be deleted.
    """
    if keep == 0:
        return
    for step in checkpoint_steps(folder)[:-keep]:
        if step != best_step and not (keep_every and step % keep_every == 0):
            model, _, done = _paths(folder, step)
            # DONE first: a set without it does not count.
            for path in (done, model, *state_files(folder, step)):
                remove_file(path)


def remove_leftovers(folder: Path, keep: Path | None = None) -> None:
    """Delete what a killed run left of checkpoints: half-written files, and sets without DONE.

    The caller holds the lock of the folder. The file `keep` stays: a run may have started from it.
    Raises RunError if a file cannot be deleted.
    """
    complete = checkpoint_steps(folder)
    for path in folder.iterdir():
        match = _CHECKPOINT_FILE.fullmatch(path.name)
        is_leftover = match and (match["partial"] or int(match["step"]) not in complete)
        if is_leftover and not is_same_file(path, keep):
            remove_file(path)


def _paths(folder: Path, step: int) -> tuple[Path, Path, Path]:
    return (
        model_path(folder, step),
        state_path(folder, step, 0),
        done_path(folder, step),
    )


def _write_done(folder: Path, step: int, checksums: dict[str, int]) -> None:
    """Declare the checkpoint of `step` complete: the CRC-32 of each of its files by name."""
    with atomic_write(done_path(folder, step)) as file:
        file.write(json.dumps({"step": step, "crc32": checksums}, indent=1).encode())


def _verify_checkpoint(folder: Path, step: int) -> None:
    """Compare all files of a checkpoint with the list in DONE. Raises CheckpointError."""
    listed, done = _listed(folder, step), done_path(folder, step)
    for name, checksum in listed.items():
        _verify_file(folder / name, checksum, done)
    if listed:
        expected = 1 + num_files(state_path(folder, step, 0))
        if len(listed) != expected:
            raise CheckpointError(f"{done}: lists {len(listed)} files, but there are {expected}.")


def _verify_model(path: Path) -> None:
    """Compare a model file with the DONE beside it, where there is one. Raises CheckpointError."""
    match = re.fullmatch(r"model_(\d{8})\.bin", path.name)
    if match is None or not done_path(path.parent, int(match[1])).is_file():
        return
    step = int(match[1])
    listed = _listed(path.parent, step)
    if listed:
        _verify_file(path, listed[path.name], done_path(path.parent, step))


def _listed(folder: Path, step: int) -> dict[str, int]:
    """The checksums in DONE; none for a checkpoint of llm.c. CheckpointError if it is damaged."""
    done = done_path(folder, step)
    try:
        raw = done.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{done}: could not be read ({error.strerror or error}).") from error
    if not raw:
        if _is_ours(folder, step):
            raise CheckpointError(f"{done}: empty; it should list the files of this checkpoint.")
        return {}
    try:
        content = json.loads(raw)
        listed = {str(name): _number(value) for name, value in content["crc32"].items()}
        known_step = _number(content.get("step", step))  # the first versions wrote none
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{done}: damaged; it should hold the checksums.") from error
    if known_step != step:
        raise CheckpointError(f"{done}: it belongs to step {known_step}, not to step {step}.")
    states = sorted(name for name in listed if name.startswith("state_"))
    expected = [state_path(folder, step, rank).name for rank in range(max(1, len(states)))]
    if sorted(listed) != sorted([f"model_{step:08d}.bin", *expected]):
        raise CheckpointError(
            f"{done}: damaged; it should list the model and the states of step {step}, but lists "
            f"{', '.join(sorted(listed)) or 'nothing'}."
        )
    return listed


def _is_ours(folder: Path, step: int) -> bool:
    """Whether a state of this step was written by us, or is damaged; llm.c's have no marker."""
    states = state_files(folder, step)
    return any(read_progress(path).position is not None for path in states)


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value


def _verify_file(path: Path, checksum: int, done: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, though {done.name} lists it.")
    try:
        found = file_checksum(path)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error.strerror or error}).") from error
    if found != checksum:
        raise CheckpointError(f"{path}: damaged (its checksum is not the one in {done.name}).")
