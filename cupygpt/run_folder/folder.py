"""Run folders: a new one, the one that is meant, and what a run leaves in it."""

import time
from pathlib import Path

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.errors import CheckpointError, ConfigError
from cupygpt.run_folder.log import MAIN_LOG, METRICS
from cupygpt.run_folder.record import RECORD

RUNS = Path("runs")


def new_run_folder(out: str | None, *, overwrite: bool) -> Path:
    """Create the folder of a new run. Raises ConfigError if it cannot, or if it holds a run."""
    folder = Path(out) if out else RUNS / time.strftime("%Y%m%d-%H%M%S")
    while out is None and folder.exists():
        folder = folder.with_name(folder.name + "x")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"-o {folder}: a file of that name exists; choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if holds_run(folder):
            if not overwrite:
                raise ConfigError(
                    f"-o {folder} already holds a run. Continue it with --resume {folder}, "
                    f"choose another folder, or start again in this one with --overwrite."
                )
            _clear(folder)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"-o {folder}: not writable ({error.strerror or error}); choose another folder."
        ) from error
    return folder


def find_run(resume: str, out: str | None, newest: str) -> Path:
    """The folder that --resume means. Raises ConfigError if there is no run to continue."""
    folder = Path(resume)
    if resume in (newest, "1"):  # llm.c writes -y 1
        folder = Path(out) if out else newest_run()
    if not folder.is_dir():
        raise ConfigError(f"--resume {folder}: there is no such folder.")
    if not checkpoint_steps(folder):
        raise CheckpointError(
            f"--resume {folder}: the folder holds no complete checkpoint (no DONE_ file)."
        )
    if not (folder / RECORD).is_file():
        raise CheckpointError(
            f"--resume {folder}: {RECORD} is missing, so the run's settings are not known. "
            f"Start a new run from its weights: -e {folder / 'model_SSSSSSSS.bin'}"
        )
    return folder


def has_checkpoint(out: str | None) -> bool:
    """Whether the folder `out`, or without one any run below runs/, has a complete checkpoint."""
    folders = [Path(out)] if out else RUNS.glob("*")
    return any(checkpoint_steps(folder) for folder in folders)


def newest_run() -> Path:
    """The run below runs/ that was written to last. Raises ConfigError if there is none."""
    records = sorted(RUNS.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    with_checkpoint = [path.parent for path in records if checkpoint_steps(path.parent)]
    if not with_checkpoint:
        raise ConfigError(
            f"--resume: no run with a checkpoint below {RUNS.resolve()}. "
            "Name its folder: --resume RUN"
        )
    return max(with_checkpoint, key=lambda folder: (folder / MAIN_LOG).stat().st_mtime)


def holds_run(folder: Path) -> bool:
    """True if the folder holds the record, the log or a checkpoint of a run."""
    return (
        (folder / RECORD).exists() or (folder / MAIN_LOG).exists() or bool(checkpoint_steps(folder))
    )


def _clear(folder: Path) -> None:
    """Remove the run in `folder`, and nothing else that lies there."""
    patterns = ("DONE_*", "model_????????.bin", "state_????????_?????.bin")
    for pattern in patterns:  # DONE first: nothing vouches for a half-deleted set
        for path in folder.glob(pattern):
            path.unlink()
    for name in (RECORD, MAIN_LOG, METRICS):
        (folder / name).unlink(missing_ok=True)
