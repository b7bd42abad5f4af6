"""Run folders: the one that is meant, and whether it holds a run."""

import contextlib
import re
from pathlib import Path

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.checkpoint.state_file import read_progress, state_path
from cupygpt.console.paste import shell_word
from cupygpt.errors import CheckpointError, ConfigError
from cupygpt.run_folder.log import MAIN_LOG
from cupygpt.run_folder.record import RECORD

RUNS = Path("runs")


def find_run(resume: str, out: str | None, newest: str) -> Path:
    """The folder that --resume means. Raises ConfigError if there is none."""
    folder = Path(resume)
    if resume in (newest, "1"):  # llm.c writes -y 1
        folder = Path(out) if out else newest_run()
    if not folder.is_dir():
        raise ConfigError(f"--resume {folder}: there is no such folder.")
    return folder


def check_can_be_resumed(folder: Path) -> None:
    """Raise CheckpointError if a folder, which no other process uses, holds no run to continue."""
    if not checkpoint_steps(folder):
        raise CheckpointError(
            f"--resume {folder}: the folder holds no complete checkpoint (no DONE_ file). "
            f"Start again in it with -o {shell_word(folder)} --overwrite; or, if it holds a model, "
            f"begin with that: -e {shell_word(folder)}"
        )
    if not (folder / RECORD).is_file() and not is_of_llmc(folder):
        raise CheckpointError(
            f"--resume {folder}: {RECORD} is missing, so the run's settings are not known. "
            f"Start a new run from its weights: -e {shell_word(folder)}"
        )


def is_of_llmc(folder: Path) -> bool:
    """Whether a folder holds a run of llm.c that has not gone on here yet."""
    steps = checkpoint_steps(folder)
    if not steps or (folder / RECORD).is_file():
        return False
    return read_progress(state_path(folder, steps[-1], 0)).position is None


def has_checkpoint(out: str | None) -> bool:
    """Whether the folder `out`, or without one any run below runs/, has a complete checkpoint."""
    return bool(checkpoint_steps(Path(out)) if out else _runs())


def newest_run() -> Path:
    """The run below runs/ that was written to last. Raises ConfigError if there is none."""
    runs = _runs()
    if not runs:
        raise ConfigError(
            f"there is no run with a checkpoint below {RUNS.resolve()}. Name the folder of the run."
        )
    return max(runs, key=_last_written)


def _runs() -> list[Path]:
    return [path.parent for path in RUNS.glob(f"*/{RECORD}") if checkpoint_steps(path.parent)]


def _last_written(folder: Path) -> float:
    """When the log of a run was written to, or its record, or any of it."""
    for path in (folder / MAIN_LOG, folder / RECORD, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def check_holds_no_run(folder: Path, *, may_restart: bool = False) -> None:
    """Raise ConfigError if a new run would mix its files with those of another one.

    A record without a trained step and without a checkpoint is what a start has left that failed:
    nobody misses it. With `may_restart` the same holds for steps without a checkpoint.
    """
    if checkpoint_steps(folder):
        raise ConfigError(
            f"-o {folder} already holds a run. Continue it with --resume {shell_word(folder)}, "
            f"choose another folder, or start again in this one with --overwrite."
        )
    if not may_restart and _has_trained(folder / MAIN_LOG):
        raise ConfigError(
            f"-o {folder} already holds a run, which ended before its first checkpoint and cannot "
            f"be continued. Start again in this folder with --overwrite, or choose another one."
        )


def _has_trained(main_log: Path) -> bool:
    """Whether a log, if there is one, holds the line of a training step."""
    if not main_log.is_file():
        return False
    with main_log.open("rb") as file:
        return any(re.match(rb"s:\d+ trl:", line) for line in file)
