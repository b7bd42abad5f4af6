"""A program that kills a training run at each of its file operations, and lets it go on each time.

    LD_PRELOAD=file_operations.so python killed_runs.py file_operations.so JOB

It starts Python only once: every run is a fork of this process. JOB is a file in JSON:

    run       the run folder, which the commands below name
    command   the command that is killed: arguments of cupygpt.train
    again     the commands that a person tries after the kill, until one of them succeeds
    before    null for a first start; for a command that resumes, the command whose run it resumes,
              which is killed after 60 % of its operations

It writes JSON: `operations` (the names of all), `kills`, `equal` (how many ended with the same
bits), `compared` (in which files), `by_command` (how many were brought to their end by which
command of `again`), `complete` (how many needed none), `faults` (a text for each kill after which
something was wrong) and `left_over` (a text for each that left files which no other run has).
"""

import ctypes
import importlib
import json
import mmap
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cupygpt.train  # before NumPy

ROW_BYTES = 200  # as in file_operations.c
MOST_OPERATIONS = 2000
NEVER = -1


class KilledRuns:
    """Runs of one job."""

    def __init__(self, library: str, job: dict[str, Any]) -> None:
        self._watch = ctypes.CDLL(library).watch_files
        self._rows = mmap.mmap(-1, ROW_BYTES * MOST_OPERATIONS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._rows))
        self.run = Path(job["run"])
        self.command: list[str] = job["command"]
        self.again: list[list[str]] = job["again"]
        self.base: Path | None = None
        self.output = self.run.with_name("output")

    def train(self, arguments: list[str], number: int = NEVER, *, torn: bool = False) -> int:
        """One run in a new process, killed at operation `number`; returns its exit code."""
        self._rows[:] = bytes(len(self._rows))

        def work() -> int:
            self._watch(
                os.fsencode(self.run),
                ctypes.c_long(number),
                torn,
                ctypes.c_void_p(self._address),
                ctypes.c_long(MOST_OPERATIONS),
            )
            return cupygpt.train.main(arguments)

        return self._in_a_child(work)

    def _in_a_child(self, work: Callable[[], int]) -> int:
        """Call `work` in a fork of this process, its output in a file; returns its exit code."""
        child = os.fork()
        if child == 0:
            code = 70  # unless it returns or raises SystemExit
            try:
                with self.output.open("wb") as output:
                    os.dup2(output.fileno(), 1)
                    os.dup2(output.fileno(), 2)
                code = work()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except Exception:  # noqa: BLE001 - the parent must not run on in this process
                traceback.print_exc()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def operations(self) -> list[str]:
        """What the latest run did, in order: "rename DONE_00000002 0"."""
        rows = (self._rows[i : i + ROW_BYTES] for i in range(0, len(self._rows), ROW_BYTES))
        texts = [row.partition(b"\0")[0].decode() for row in rows]
        return texts[: texts.index("")]

    def prepare(self) -> None:
        """The run folder as it is before the command."""
        shutil.rmtree(self.run, ignore_errors=True)
        if self.base is not None:
            shutil.copytree(self.base, self.run)

    def files(self) -> dict[str, bytes]:
        """What lies in the run folder."""
        paths = [path for path in self.run.rglob("*") if path.is_file()]
        return {path.relative_to(self.run).as_posix(): path.read_bytes() for path in paths}

    def reference(self) -> tuple[dict[str, bytes], set[str]]:
        """The files that two runs without a kill have in common bit for bit, and all names."""
        ends = []
        for _ in range(2):
            self.prepare()
            code = self.train(self.command)
            assert code == 0, (code, self.output.read_text(errors="replace"))
            ends.append(self.files())
            time.sleep(1.1)  # files that hold a time in seconds differ
        assert ends[0].keys() == ends[1].keys(), (ends[0].keys(), ends[1].keys())
        same = {name: data for name, data in ends[0].items() if ends[1][name] == data}
        return same, set(ends[0])

    def load_modules(self) -> None:
        """Import what a run imports late, so that each fork has it."""
        names = self.run.with_name("modules")

        def work() -> int:
            code = cupygpt.train.main(self.command)
            names.write_text("\n".join(name for name in sys.modules if name != "__main__"))
            return code

        code = self._in_a_child(work)
        assert code == 0, (code, self.output.read_text(errors="replace"))
        for name in names.read_text().split():
            try:
                importlib.import_module(name)
            except ImportError:  # made by another module, not by a file
                continue


def everything(library: str, job: dict[str, Any]) -> dict[str, Any]:
    """Kill the command at each operation; see the top of this file."""
    runs = KilledRuns(library, job)
    runs.prepare()
    if job["before"]:
        assert runs.train(job["before"]) == 0, runs.output.read_text(errors="replace")
        number = len(runs.operations()) * 6 // 10
        runs.prepare()
        assert runs.train(job["before"], number) == -signal.SIGKILL
        runs.base = runs.run.with_name("base")
        runs.run.rename(runs.base)
        runs.prepare()
    runs.load_modules()
    same, names = runs.reference()
    operations = runs.operations()
    by_command, complete = [0] * len(runs.again), 0
    faults, left_over = [], []
    kills = [
        (number, torn)
        for number, text in enumerate(operations)
        for torn in ([False, True] if int(text.split()[-1]) > 1 else [False])
    ]
    for number, torn in kills:
        name = f"{'half of ' if torn else ''}{number}: {operations[number]}"
        runs.prepare()
        code = runs.train(runs.command, number, torn=torn)
        if code != -signal.SIGKILL:
            faults.append(f"{name}: not killed, exit code {code}")
            continue
        for index, arguments in enumerate(runs.again):
            code = runs.train(arguments)
            if code == 0:
                by_command[index] += 1
                break
        end = runs.files()
        other = sorted(key for key, data in same.items() if end.get(key) != data)
        if other:
            text = runs.output.read_text(errors="replace")
            faults.append(f"{name}: other bits in {other}; the last command ended with {code}")
            faults[-1] += f": {text[-400:]}" if code else ""
        elif code:
            complete += 1
        if code == 0 and end.keys() - names:
            left_over.append(f"{name}: {sorted(end.keys() - names)}")
    return {
        "operations": operations,
        "kills": len(kills),
        "equal": len(kills) - len(faults),
        "compared": sorted(same),
        "by_command": by_command,
        "complete": complete,
        "faults": faults,
        "left_over": left_over,
    }


if __name__ == "__main__":
    json.dump(everything(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())), sys.stdout)
