"""Which line of the kernel's own file an address in its library belongs to."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

INCLUDE_DIR = Path(__file__).parent / "include"
"""The emulator's own headers. No report names a line in them."""


@dataclass(frozen=True)
class Place:
    """A line of a kernel's own file, the lines in headers below it, and those it is called from."""

    file: Path
    line: int
    inside: tuple[Place, ...] = ()
    """In functions that this line calls and that were inlined, outermost first."""
    callers: tuple[Place, ...] = ()
    """Innermost first."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def surroundings(self, indent: str) -> list[str]:
        """What a report says below this line."""
        below = [f"{indent}inside, at {place}" for place in self.inside]
        return below + [f"{indent}called from {place}" for place in self.callers]


def own_place(frames: Sequence[Place], source: Path) -> Place | None:
    """Of frames, innermost first, the one in the kernel's own file; the others stand around it."""
    if not frames:
        return None
    own = next((i for i, frame in enumerate(frames) if frame.file == source), 0)
    inside, callers = tuple(frames[:own][::-1]), tuple(frames[own + 1 :])
    return Place(frames[own].file, frames[own].line, inside, callers)


def frames_of(offsets: Iterable[int], library: Path) -> dict[int, list[Place]]:
    """For each offset into a library its line, and those it was inlined from, innermost first."""
    wanted = sorted(set(offsets))
    if not wanted:
        return {}
    output = subprocess.run(
        ["addr2line", "-a", "-i", "-e", str(library)],
        input="\n".join(map(hex, wanted)),
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    ).stdout
    found: dict[int, list[Place]] = {}
    frames: list[Place] = []
    for row in output.splitlines():
        if re.fullmatch("0x[0-9a-f]+", row):
            frames = found.setdefault(int(row, 16), [])
        elif match := re.fullmatch(r"(.*):(\d+)(?: \(discriminator \d+\))?", row):
            file, line = Path(match[1]), int(match[2])
            if line and INCLUDE_DIR not in file.parents:
                frames.append(Place(file, line))
    return found
