"""Removes the barriers of kernels, one at a time, and asks whether any check fails."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cupygpt.emulator.emulate import substituted
from cupygpt.emulator.faults import EmulatorError
from cupygpt.emulator.preprocessed import user_lines
from cupygpt.emulator.toolchain import preprocess

_BARRIER = re.compile(r"\b__sync(?:threads|warp)\s*\([^;]*?\)\s*;")


def barriers(source: Path, options: Sequence[str]) -> set[tuple[Path, int]]:
    """(file, line) of each barrier that is compiled into a .cu file, headers included."""
    rows = user_lines(preprocess(source, options))
    return {(Path(file), line) for file, line, row in rows if _BARRIER.search(row)}


def mutate(file: Path, line: int, root: Path, folder: Path) -> Path:
    """Copy `root` to `folder` without the barrier on that line of `file`; returns the mutant."""
    shutil.copytree(root, folder, dirs_exist_ok=True)
    rows = file.read_text().splitlines(keepends=True)
    rows[line - 1], count = _BARRIER.subn(";", rows[line - 1])
    assert count == 1, f"{file}:{line} holds {count} barriers, one was expected"
    mutant = folder / file.relative_to(root)
    mutant.write_text("".join(rows))
    return mutant


def survives(root: Path, mutants: Path, cases: Iterable[Callable[[], None]]) -> bool:
    """Whether all cases pass with the files below `mutants` in place of those below `root`."""
    with substituted(root, mutants):
        for run in cases:
            try:
                run()
            except (AssertionError, EmulatorError):
                return False
    return True
