"""Checkpoint sets in a run folder: complete or absent, newest first, a few kept.

A set is model_SSSSSSSS.bin, state_SSSSSSSS_00000.bin and, written last, DONE_SSSSSSSS, as in
llm.c. Our DONE holds the checksums of the other two (llm.c's is empty and only looks at the name).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.config import GPTConfig
from cupygpt.errors import CheckpointError
from cupygpt.files import PARTIAL_SUFFIX, atomic_write
from cupygpt.headers import file_checksum
from cupygpt.modelfile import ModelFile, load_model, save_model
from cupygpt.statefile import Progress, StateFile, load_state, read_progress, save_state


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    model: ModelFile
    state: StateFile


def save_checkpoint(
    folder: Path,
    config: GPTConfig,
    progress: Progress,
    parameters: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    master: np.ndarray | None = None,
) -> None:
    """Write the set of `progress.step`; bfloat16 parameters (uint16) make a version 5 model file.

    Raises RunError where the disk refuses. Whatever happens on the way, sets written before stay as they are.
    """
    model, state, done = _paths(folder, progress.step)
    # A set of this step may exist (a resumed run saves its first step again): it ends here, so
    # that DONE never vouches for a mixture.
    done.unlink(missing_ok=True)
    precision = "bf16" if parameters.dtype == np.uint16 else "fp32"
    checksums = {
        model.name: save_model(model, config, parameters, precision),
        state.name: save_state(state, progress, m, v, master),
    }
    with atomic_write(done) as file:
        file.write(json.dumps({"crc32": checksums}, indent=1).encode())


def load_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Read and verify the set of `step`. Raises CheckpointError that says how to go back."""
    model, state, done = _paths(folder, step)
    try:
        _verify(folder, done)
        loaded = load_model(model)
        return Checkpoint(loaded, load_state(state, loaded.config.num_parameters))
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
            model, state, done = _paths(folder, step)
            done.unlink(missing_ok=True)  # first: a set without DONE does not count
            model.unlink(missing_ok=True)
            state.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written."""
    for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def _paths(folder: Path, step: int) -> tuple[Path, Path, Path]:
    return (
        model_path(folder, step),
        folder / f"state_{step:08d}_00000.bin",
        folder / f"DONE_{step:08d}",
    )


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
