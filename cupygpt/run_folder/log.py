"""The logs of a run: main.log in llm.c's format, and metrics.jsonl with more in it."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from cupygpt.checkpoint.checkpoint import remove_leftovers
from cupygpt.errors import RunError
from cupygpt.files import atomic_write

MAIN_LOG = "main.log"
METRICS = "metrics.jsonl"


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
