"""DONE_SSSSSSSS: written last, it says that a checkpoint is complete.

llm.c's DONE is empty, and only its name counts. Ours lists the other files of the set with their
checksums, and the step. A state file that we wrote must have such a list.
"""

import json
import re
from pathlib import Path
from typing import Any

from cupygpt.checkpoint.state_file import num_files, read_progress, state_files, state_path
from cupygpt.errors import CheckpointError
from cupygpt.files import atomic_write, file_checksum


def done_path(folder: Path, step: int) -> Path:
    """The DONE file of `step`."""
    return folder / f"DONE_{step:08d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a DONE file, in ascending order."""
    matches = (re.fullmatch(r"DONE_(\d{8})", path.name) for path in folder.glob("DONE_*"))
    return sorted(int(match[1]) for match in matches if match)


def write_done(folder: Path, step: int, checksums: dict[str, int]) -> None:
    """Declare the checkpoint of `step` complete: the CRC-32 of each of its files by name."""
    with atomic_write(done_path(folder, step)) as file:
        file.write(json.dumps({"step": step, "crc32": checksums}, indent=1).encode())


def verify_checkpoint(folder: Path, step: int) -> None:
    """Compare all files of a checkpoint with the list in DONE. Raises CheckpointError."""
    listed, done = _listed(folder, step), done_path(folder, step)
    for name, checksum in listed.items():
        _verify_file(folder / name, checksum, done)
    if listed:
        expected = 1 + num_files(state_path(folder, step, 0))
        if len(listed) != expected:
            raise CheckpointError(f"{done}: lists {len(listed)} files, but there are {expected}.")


def verify_model(path: Path) -> None:
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
