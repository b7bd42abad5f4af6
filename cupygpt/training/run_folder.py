"""The folder of a run: what it was asked to do, on what, and what came of it, step by step."""

import contextlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import cupygpt
from cupygpt.checkpoint.checkpoint import checkpoint_steps, remove_leftovers
from cupygpt.errors import CheckpointError, ConfigError, RunError
from cupygpt.files import atomic_write
from cupygpt.training.plan import Data, Plan

RUNS = Path("runs")
RECORD = "run.json"
MAIN_LOG = "main.log"
METRICS = "metrics.jsonl"


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


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Save the run's record (settings, model, data, environment) as JSON."""
    with atomic_write(folder / RECORD) as file:
        file.write(json.dumps(record, indent=2).encode())


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run. Raises CheckpointError if it is damaged."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for part in ("config", "model", "data"):
            if not isinstance(record[part], dict):
                raise TypeError(part)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}). Start a new run from the weights in {path.parent}."
        ) from error
    return record


def new_record(plan: Plan, data: Data) -> dict[str, Any]:
    """What a new run writes into run.json."""
    return {
        "config": plan.config.as_dict(),
        "model": asdict(plan.shape.config),
        "data": data.record(),
        "precision": plan.shape.precision.name,
        "ranks": plan.world,
        "tokens_per_step": plan.tokens_per_step,
        "environment": environment(plan.device.describe()),
    }


def processor_name() -> str:
    """The processor and the instructions that NumPy uses of it: "AMD EPYC 9654, X86_V4"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    try:
        found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    except (TypeError, KeyError):  # before NumPy 1.26
        found = []
    return ", ".join([name, *found[-1:]])


def environment(device: str) -> dict[str, str]:
    """What the numbers of a run depend on, in addition to its settings."""
    return {
        "cupygpt": cupygpt.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": processor_name(),
        "device": device,
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class RunLog:
    """main.log in llm.c's format, and metrics.jsonl with more in it; without a folder, nothing."""

    def __init__(self, folder: Path | None, *, resume_step: int | None = None) -> None:
        if folder is None:
            self._main, self._metrics = (_open_append(Path(os.devnull)) for _ in range(2))
            return
        remove_leftovers(folder)
        if resume_step is not None:
            _keep_lines(folder / MAIN_LOG, lambda line: _main_log_step(line) < resume_step)
            _keep_lines(folder / METRICS, lambda line: _metrics_step(line) < resume_step)
        self._main = _open_append(folder / MAIN_LOG)
        self._metrics = _open_append(folder / METRICS)

    def step(self, step: int, loss: float, lr: float, grad_norm: float, **more: float) -> None:
        """Training step `step` (0-based): loss before the update, learning rate, gradient norm."""
        self._main.write(f"s:{step} trl:{loss:.4f} lr:{lr:.6f} norm:{grad_norm:.2f}\n")
        self._event("train", step, loss=loss, lr=lr, norm=grad_norm, **more)

    def validation(self, step: int, loss: float, **more: float) -> None:
        """Validation before training step `step`."""
        self._main.write(f"s:{step} tel:{loss:.4f}\n")
        self._event("val", step, loss=loss, **more)

    def sample(self, step: int, text: str) -> None:
        """A sample before training step `step`."""
        self._event("sample", step, text=text)

    def flush(self) -> None:
        """Hand the lines to the system; no checkpoint is written if its log lines cannot be."""
        try:
            self._main.flush()
            self._metrics.flush()
        except OSError as error:
            raise RunError(f"the log could not be written ({error.strerror or error}).") from error

    def close(self) -> None:
        """Close both files. An error here loses log lines, never a checkpoint."""
        for file in (self._main, self._metrics):
            with contextlib.suppress(OSError):
                file.close()

    def _event(self, kind: str, step: int, **values: float | str) -> None:
        self._metrics.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")


def _clear(folder: Path) -> None:
    """Remove the run in `folder`, and nothing else that lies there."""
    patterns = ("DONE_*", "model_????????.bin", "state_????????_?????.bin")
    for pattern in patterns:  # DONE first: nothing vouches for a half-deleted set
        for path in folder.glob(pattern):
            path.unlink()
    for name in (RECORD, MAIN_LOG, METRICS):
        (folder / name).unlink(missing_ok=True)


def _open_append(path: Path) -> TextIO:
    return path.open("a", encoding="utf-8", newline="\n", buffering=1)  # so that tail -f works


def _keep_lines(path: Path, wanted: Callable[[str], bool]) -> None:
    """Drop the lines of steps that a resumed run repeats, and a line that was cut short."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    with atomic_write(path) as file:
        file.write("".join(line for line in lines if line.endswith("\n") and wanted(line)).encode())


def _main_log_step(line: str) -> int:
    match = re.match(r"s:(\d+) ", line)
    return int(match[1]) if match else sys.maxsize


def _metrics_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize
