"""Checkpoint sets in a run folder: complete or absent, newest first, a few kept.

A set is model_SSSSSSSS.bin, state_SSSSSSSS_00000.bin (and one more for each rank that keeps a part
of the state) and, written last, DONE_SSSSSSSS, as in llm.c. Our DONE holds the checksums of the
others (llm.c's is empty and only looks at the name).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.atomic_file import PARTIAL_SUFFIX, atomic_write
from cupygpt.checkpoint.model_file import ModelFile, load_model, save_model
from cupygpt.checkpoint.state_file import (
    Progress,
    StateFile,
    load_state,
    read_progress,
    save_state,
    state_path,
)
from cupygpt.config import GPTConfig
from cupygpt.distributed.ranks import OneRank, Ranks
from cupygpt.distributed.zero import Part, part_of
from cupygpt.errors import CheckpointError
from cupygpt.llmc_header import file_checksum


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    model: ModelFile
    state: StateFile


def save_checkpoint(
    folder: Path,
    config: GPTConfig,
    progress: Progress,
    parameters: np.ndarray | None,
    m: np.ndarray | None,
    v: np.ndarray | None,
    master: np.ndarray | None = None,
    *,
    ranks: Ranks | None = None,
    part: Part | None = None,
) -> None:
    """Write the set of `progress.step`; bfloat16 parameters (uint16) make a version 5 model file.

    All `ranks` call. Rank 0 gives the parameters and, unless each has a `part` of them (ZeRO-1),
    the moments: the same on all ranks, they are written once. DONE follows when every rank's
    file is complete. Raises RunError where the disk refuses. Whatever happens on the way, sets
    written before stay as they are.
    """
    ranks = ranks or OneRank()
    model, _, done = _paths(folder, progress.step)
    if ranks.rank == 0:
        # A set of this step may exist (a resumed run saves its first step again): it ends here, so
        # that DONE never vouches for a mixture.
        done.unlink(missing_ok=True)
        for state in _states(folder, progress.step):
            state.unlink()
    ranks.all_gather_object("the old set has ended")
    checksums = {}
    if parameters is not None:
        precision = "bf16" if parameters.dtype == np.uint16 else "fp32"
        checksums[model.name] = save_model(model, config, parameters, precision)
    if m is not None and v is not None:
        state = state_path(folder, progress.step, ranks.rank)
        shards = 1 if part is None else ranks.world
        checksums[state.name] = save_state(
            state, progress, m, v, master, rank=ranks.rank, shards=shards, part=part
        )
    everyone = ranks.all_gather_object(checksums)
    if ranks.rank == 0:
        written = {name: crc for files in everyone for name, crc in files.items()}
        with atomic_write(done) as file:
            file.write(json.dumps({"crc32": written}, indent=1).encode())


def load_checkpoint(
    folder: Path, step: int, *, ranks: Ranks | None = None, zero_stage: int = 0
) -> Checkpoint:
    """Read and verify the set of `step`. Raises CheckpointError that says how to go back.

    With `zero_stage` 1 each of the `ranks` gets its part of the state, else all of it, whichever
    ranks wrote it.
    """
    ranks = ranks or OneRank()
    model, state, done = _paths(folder, step)
    try:
        if ranks.rank == 0:
            _verify(folder, done)  # once for all: that reads every file
        ranks.all_gather_object("verified")
        loaded = load_model(model)
        P = loaded.config.num_parameters
        part = part_of(P, ranks.world, ranks.rank) if zero_stage else None
        return Checkpoint(loaded, load_state(state, P, part))
    except CheckpointError as error:
        earlier = [other for other in checkpoint_steps(folder) if other < step]
        advice = (
            f"Delete {done} to go on from step {earlier[-1]}."
            if earlier
            else "There is no earlier checkpoint in this folder."
        )
        raise CheckpointError(f"{error} {advice}") from error


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps that have a DONE file, in order."""
    matches = (re.fullmatch(r"DONE_(\d{8})", path.name) for path in folder.glob("DONE_*"))
    return sorted(int(match[1]) for match in matches if match)


def best_step(folder: Path) -> int:
    """The step with the lowest validation loss that is still there, else the newest.

    Raises CheckpointError if the folder holds no complete checkpoint.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder}: the folder holds no complete checkpoint.")
    best = read_progress(_paths(folder, steps[-1])[1]).best_step
    return best if best in steps else steps[-1]


def model_path(folder: Path, step: int) -> Path:
    """Where the weights of `step` are."""
    return folder / f"model_{step:08d}.bin"


def prune_checkpoints(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` sets (0 keeps all) and that of `best_step`."""
    if keep == 0:
        return
    for step in checkpoint_steps(folder)[:-keep]:
        if step != best_step:
            model, _, done = _paths(folder, step)
            done.unlink(missing_ok=True)  # first: a set without DONE does not count
            model.unlink(missing_ok=True)
            for state in _states(folder, step):
                state.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written."""
    for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def _paths(folder: Path, step: int) -> tuple[Path, Path, Path]:
    return (
        model_path(folder, step),
        state_path(folder, step, 0),
        folder / f"DONE_{step:08d}",
    )


def _states(folder: Path, step: int) -> list[Path]:
    """The state files of all ranks that are there."""
    return sorted(folder.glob(f"state_{step:08d}_?????.bin"))


def _verify(folder: Path, done: Path) -> None:
    """Compare the checksums that DONE holds; an empty DONE (llm.c's) vouches for nothing."""
    try:
        text = done.read_text(encoding="utf-8")
        checksums = json.loads(text)["crc32"] if text else {}
        expected = {str(name): int(value) for name, value in checksums.items()}
    except OSError as error:
        raise CheckpointError(f"{done}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{done}: damaged; it should hold the checksums.") from error
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, though {done.name} lists it.")
        if file_checksum(path) != checksum:
            raise CheckpointError(f"{path}: damaged (its checksum is not the one in {done.name}).")
