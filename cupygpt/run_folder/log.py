"""The logs of a run: main.log in llm.c's format, and metrics.jsonl with more in it."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cupygpt.errors import CheckpointError
from cupygpt.files import atomic_write, sync_file

MAIN_LOG = "main.log"
METRICS = "metrics.jsonl"


class RunLog:
    """main.log in llm.c's format, and metrics.jsonl with more in it; without a folder, nothing.

    No call raises for a disk that fails or is full: `failure` then says what could not be written,
    and the lines wait in memory for the next call.
    """

    def __init__(self, folder: Path | None) -> None:
        self._main = _LogFile(None if folder is None else folder / MAIN_LOG)
        self._metrics = _LogFile(None if folder is None else folder / METRICS)

    @property
    def failure(self) -> str | None:
        """Which file could not be written last time, and why; None if all lines are written."""
        return self._main.failure or self._metrics.failure

    def step(self, step: int, loss: float, lr: float, grad_norm: float, **more: float) -> None:
        """Training step `step` (0-based): loss before the update, learning rate, gradient norm."""
        self._main.add(f"s:{step} trl:{loss:.4f} lr:{lr:.6f} norm:{grad_norm:.2f}\n")
        self._event("train", step, loss=loss, lr=lr, norm=grad_norm, **more)

    def validation(self, step: int, loss: float, **more: float) -> None:
        """Validation before training step `step`."""
        self._main.add(f"s:{step} tel:{loss:.4f}\n")
        self._event("val", step, loss=loss, **more)

    def evaluation(self, step: int, accuracy: float, more: Mapping[str, float | None]) -> None:
        """The accuracy on questions before training step `step`, as llm.c counts it, and others."""
        self._main.add(f"s:{step} eval:{accuracy:.4f}\n")
        self._event("eval", step, **more)

    def sample(self, step: int, text: str) -> None:
        """A sample before training step `step`."""
        self._event("sample", step, text=text)

    def sync(self) -> None:
        """Put the lines on the disk, before a checkpoint that follows them."""
        self._main.sync()
        self._metrics.sync()

    def close(self) -> None:
        """Close both files. An error here loses log lines, never a checkpoint."""
        self._main.close()
        self._metrics.close()

    def _event(self, kind: str, step: int, **values: float | str | None) -> None:
        known = {name: _json_value(value) for name, value in values.items()}
        event = {"kind": kind, "step": step, **known}
        self._metrics.add(json.dumps(event, allow_nan=False) + "\n")


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The events of a run in their order: kind, step and values, as metrics.jsonl holds them.

    A line that a crash has cut off is left out. Raises CheckpointError if there is no such file.
    """
    path = folder / METRICS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be read ({error.strerror or error}). Name the folder of a run."
        ) from error
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and {"kind", "step"} <= event.keys():
                yield event


class _LogFile:
    """A file that lines are added to. What the disk does not take is kept, and tried again."""

    def __init__(self, path: Path | None) -> None:
        self.failure: str | None = None
        self._path = path
        self._waiting = bytearray()
        self._file = None
        if path is not None:
            try:
                self._file = path.open("ab", buffering=0)  # so that tail -f works
            except OSError as error:
                raise CheckpointError(
                    f"{path}: could not be opened ({error.strerror or error}). Check the folder "
                    f"and its permissions."
                ) from error

    def add(self, line: str) -> None:
        if self._file is not None:
            self._waiting += line.encode()
            self._write()

    def sync(self) -> None:
        self._write()
        if self._file is not None and not self.failure:
            with self._noting_failure():
                sync_file(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._write()
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self) -> None:
        if self._file is None:
            return
        with self._noting_failure():
            while self._waiting:  # a disk that fills takes a part of the line
                del self._waiting[: self._file.write(self._waiting) or 0]

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
            self.failure = None
        except OSError as error:
            self.failure = f"{self._path}: could not be written ({error.strerror or error})."


def _json_value(value: float | str | None) -> float | str | None:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut_logs(folder: Path, step: int) -> list[str]:
    """Drop what a run that continues at `step` writes again, and lines that are damaged.

    Returns what is missing then, a sentence for each file. Raises CheckpointError for a file that
    cannot be read, RunError for one that cannot be written.
    """
    main = _keep_lines(folder / MAIN_LOG, step, _main_log_step)
    metrics = _keep_lines(folder / METRICS, step, _metrics_step)
    return [*main, *metrics]


def _keep_lines(path: Path, step: int, parse: Callable[[str], tuple[int, bool]]) -> list[str]:
    """Keep the lines of steps before `step`. `parse` gives a line's step, and if it is training."""
    try:
        lines = _read_lines(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be read ({error.strerror or error}). Move it away; the run goes on "
            f"without it."
        ) from error
    kept, trained, damaged = [], set(), 0
    for line in lines:
        if not line.endswith(b"\n"):
            continue  # cut short by the end of the run, as the last line may be
        try:
            of_step, is_training = parse(line.decode())
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            damaged += 1
            continue
        if of_step < step:
            kept.append(line)
            if is_training:
                trained.add(of_step)
    if len(kept) < len(lines):
        with atomic_write(path) as rewritten:
            rewritten.write(b"".join(kept))
    return _what_is_missing(path.name, damaged, sorted({*range(step)} - trained))


def _read_lines(path: Path) -> list[bytes]:
    """The lines of a log; none if there is no such file, or a pipe or device in its place."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        return file.readlines()


def _what_is_missing(name: str, damaged: int, steps: list[int]) -> list[str]:
    parts = []
    if damaged:
        parts.append(f"{damaged} damaged line{'s were' if damaged > 1 else ' was'} removed")
    if steps:
        ranges = _ranges(steps)
        shown = ", ".join(ranges[:5]) + (", ..." if len(ranges) > 5 else "")
        parts.append(f"the lines of {len(steps)} training steps are missing ({shown})")
    return [f"{name}: {'; '.join(parts)}"] if parts else []


def _ranges(numbers: list[int]) -> list[str]:
    """Ascending numbers in words: [1, 2, 3, 7] gives ["1 to 3", "7"]."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return [str(first) if first == last else f"{first} to {last}" for first, last in ranges]


def _main_log_step(line: str) -> tuple[int, bool]:
    match = re.fullmatch(r"s:(\d{1,18}) (trl|tel|eval):\S.*\n", line)
    if match is None:
        raise ValueError(line)
    return int(match[1]), match[2] == "trl"


def _metrics_step(line: str) -> tuple[int, bool]:
    event = json.loads(line)
    return int(event["step"]), event["kind"] == "train"
