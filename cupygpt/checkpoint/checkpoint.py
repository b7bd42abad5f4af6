"""Checkpoints in a run folder: complete or absent, newest first, a few kept.

A checkpoint is a set of files: model_SSSSSSSS.bin, state_SSSSSSSS_00000.bin (with ZeRO-1 one for
each rank) and, written last, DONE_SSSSSSSS, as in llm.c. Our DONE holds the checksums of the other
files (llm.c's is empty; only its name counts).
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cupygpt.checkpoint.done import checkpoint_steps, done_path, verify_checkpoint, write_done
from cupygpt.checkpoint.model_file import load_model, save_model
from cupygpt.checkpoint.state_file import (
    TrainState,
    load_state,
    read_progress,
    save_state,
    state_files,
    state_path,
)
from cupygpt.config import GPTConfig
from cupygpt.distributed.ranks import ONE_RANK, Ranks
from cupygpt.distributed.zero import shard_of
from cupygpt.errors import CheckpointError
from cupygpt.files import PARTIAL_SUFFIX, is_same_file, remove_file

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
        write_done(folder, step, written)


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
            verify_checkpoint(folder, step)  # once for all ranks, because it reads every file
        ranks.all_gather_object("verified")
        loaded = load_model(model, verified=True)
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


def best_step(folder: Path) -> int:
    """The step with the lowest validation loss if its checkpoint is kept, else the newest step.

    Raises CheckpointError if the folder holds no complete checkpoint.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder}: the folder holds no complete checkpoint.")
    progress = read_progress(_paths(folder, steps[-1])[1])
    is_kept = math.isfinite(progress.best_loss) and progress.best_step in steps
    return progress.best_step if is_kept else steps[-1]


def model_path(folder: Path, step: int) -> Path:
    """The model file of `step`."""
    return folder / f"model_{step:08d}.bin"


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
