"""Checkpoints in a run folder: complete or absent, newest first, a few kept.

A checkpoint is a set of files: model_SSSSSSSS.bin, state_SSSSSSSS_00000.bin (with ZeRO-1 one for
each rank) and, written last, DONE_SSSSSSSS, as in llm.c. Our DONE holds the checksums of the other
files (llm.c's is empty; only its name counts).
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cupygpt.checkpoint.model_file import load_model, save_model
from cupygpt.checkpoint.state_file import (
    TrainState,
    load_state,
    read_progress,
    save_state,
    state_path,
)
from cupygpt.config import GPTConfig
from cupygpt.distributed.ranks import ONE_RANK, Ranks
from cupygpt.distributed.zero import shard_of
from cupygpt.errors import CheckpointError
from cupygpt.files import PARTIAL_SUFFIX, atomic_write, file_checksum


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
        done.unlink(missing_ok=True)
        for path in _state_files(folder, step):
            path.unlink()
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
        with atomic_write(done) as file:
            file.write(json.dumps({"crc32": written}, indent=1).encode())


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
            _verify(folder, done)  # once for all ranks, because it reads every file
        ranks.all_gather_object("verified")
        loaded = load_model(model)
        P = loaded.config.num_parameters
        shards = zero_stage and ranks.world > 1
        state = load_state(first_state, P, shard_of(P, ranks.world, ranks.rank) if shards else None)
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
    best = read_progress(_paths(folder, steps[-1])[1]).best_step
    return best if best in steps else steps[-1]


def model_path(folder: Path, step: int) -> Path:
    """The model file of `step`."""
    return folder / f"model_{step:08d}.bin"


def prune_checkpoints(
    folder: Path, keep: int, best_step: int | None, *, keep_every: int = 0
) -> None:
    """Delete all checkpoints but the newest `keep` (0 keeps all) and that of `best_step`.

    Those of a step that is a multiple of `keep_every` stay too, unless it is 0.
    """
    if keep == 0:
        return
    for step in checkpoint_steps(folder)[:-keep]:
        if step != best_step and not (keep_every and step % keep_every == 0):
            model, _, done = _paths(folder, step)
            done.unlink(missing_ok=True)  # first: a set without DONE does not count
            model.unlink(missing_ok=True)
            for state in _state_files(folder, step):
                state.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the half-written files of a killed run."""
    for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def _paths(folder: Path, step: int) -> tuple[Path, Path, Path]:
    return (
        model_path(folder, step),
        state_path(folder, step, 0),
        folder / f"DONE_{step:08d}",
    )


def _state_files(folder: Path, step: int) -> list[Path]:
    """The existing state files of all ranks."""
    return sorted(folder.glob(f"state_{step:08d}_?????.bin"))


def _verify(folder: Path, done: Path) -> None:
    """Compare the files with the checksums in DONE; an empty DONE (llm.c's) has none to compare."""
    try:
        text = done.read_text(encoding="utf-8")
        checksums = json.loads(text)["crc32"] if text else {}
        expected = {str(name): int(value) for name, value in checksums.items()}
    except OSError as error:
        raise CheckpointError(f"{done}: could not be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{done}: damaged; it should hold the checksums.") from error
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, though {done.name} lists it.")
        if file_checksum(path) != checksum:
            raise CheckpointError(f"{path}: damaged (its checksum is not the one in {done.name}).")
