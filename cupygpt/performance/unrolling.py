"""How many loads of one place nvcc keeps under way at once, as far as the source tells.

nvcc unrolls a loop of constant step 16 times, and then starts 16 loads before it waits for the
first. It cannot where the step is known only at run time (`n += blockDim.x`). A loop whose length
the compiler knows is unrolled wholly. `#pragma unroll N` decides itself.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cupygpt.emulator.counted import UNDER_WAY, AccessCounts, Counts
from cupygpt.emulator.places import Place

MOST = UNDER_WAY[-1]

_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"', re.DOTALL)
_LOOP = re.compile(r"\b(for|while)\s*\(")
_PRAGMA = re.compile(r"#\s*pragma\s+unroll\b[ \t(]*(\w*)[^\n]*\n\s*$")
_CONSTANT = re.compile(r"[\s\d+\-*/%<>()]*(?:\b[A-Z][A-Z0-9_]*\b[\s\d+\-*/%<>()]*)*")
_VALUE = r"(?:#\s*define\s+{0}|\b{0}\s*=)\s*(\d+)\b"


@dataclass(frozen=True)
class Loop:
    """A `for` or `while` of a source text."""

    first_line: int
    last_line: int
    pragma: str
    """N of `#pragma unroll N`; empty for one without N; "none" where there is no pragma."""
    head: tuple[str, ...]
    """The three parts of a `for`; of a `while` the condition."""

    def loads_under_way(self, passes: float, text: str) -> int:
        """Of one load in it that a warp comes to `passes` times in a launch."""
        length = self._known_length(text)
        if self.pragma.isdigit():
            wanted = int(self.pragma)
        elif length:
            return length
        elif self._has_constant_step():
            wanted = MOST
        else:
            return 1
        return wanted if passes >= wanted else 1

    def is_whole(self, text: str) -> bool:
        """Whether it is unrolled wholly, so that the loop around it may go on unrolling."""
        return not self.pragma.isdigit() and bool(self._known_length(text))

    def _has_constant_step(self) -> bool:
        if len(self.head) < 3:
            return False
        step = self.head[2].partition(",")[0].strip()
        by = re.fullmatch(r"\w+\s*[+-]=\s*(.+)", step)
        one = re.fullmatch(r"(?:\+\+|--)\s*\w+|\w+\s*(?:\+\+|--)", step)
        return bool(one or (by and _CONSTANT.fullmatch(by[1])))

    def _known_length(self, text: str) -> int:
        """The number of rounds if the compiler knows it, at most MOST; 0 if it does not."""
        if not self._has_constant_step():
            return 0
        start = re.search(r"=([^=,]*)$", self.head[0].partition(",")[0])
        bound = re.fullmatch(r"\s*\w+\s*[<>]=?\s*([^&|]+)", self.head[1])
        if not start or not bound:
            return 0
        if not _CONSTANT.fullmatch(start[1]) or not _CONSTANT.fullmatch(bound[1]):
            return 0
        low, high = _number(start[1], text), _number(bound[1], text)
        step = _number((self.head[2].partition("=")[2] or "1"), text)
        if low is None or high is None or not step:
            return MOST
        return max(1, min(MOST, -(-abs(high - low) // step)))


def _number(expression: str, text: str) -> int | None:
    """A number, or the value of a constant that the text defines; None for anything else."""
    word = expression.strip()
    if word.isdigit():
        return int(word)
    found = re.search(_VALUE.format(re.escape(word)), text) if word.isidentifier() else None
    return int(found[1]) if found else None


def loads_under_way(counts: Counts) -> int:
    """The loads under way in a launch: those of the place that loads most, one of UNDER_WAY."""
    loads = [a for a in counts.accesses if a.space == "global" and a.kind in ("read", "async copy")]
    if not loads:
        return MOST
    return of_access(max(loads, key=lambda access: access.requests), counts.warps)


def of_access(access: AccessCounts, warps: int) -> int:
    """The loads under way of one access, one of UNDER_WAY."""
    number = 1 if access.place else MOST
    for loop, text in _loops_around(access.place):
        number = min(MOST, number * loop.loads_under_way(access.requests / warps, text))
        if not loop.is_whole(text):
            break
    else:
        number = MOST if number == 1 else number
    return UNDER_WAY[bisect_right(UNDER_WAY, number) - 1]


def _loops_around(place: Place | None) -> Iterator[tuple[Loop, str]]:
    """The loops that hold a place, innermost first, with their texts; also those of its callers."""
    if place is None:
        return
    for frame in (*place.inside[::-1], place, *place.callers):
        text, loops = _loops_of(frame.file)
        around = [loop for loop in loops if loop.first_line <= frame.line <= loop.last_line]
        for loop in sorted(around, key=lambda loop: -loop.first_line):
            yield loop, text


def _loops_of(file: Path) -> tuple[str, list[Loop]]:
    """The text of a file without comments, and its loops; nothing of a file that is not there."""
    try:
        raw = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", []
    text = _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), raw)
    return text, [_read_loop(text, match) for match in _LOOP.finditer(text)]


def _read_loop(text: str, match: re.Match[str]) -> Loop:
    head_end = _closing(text, match.end() - 1)
    pragma = _PRAGMA.search(text, 0, match.start())
    return Loop(
        first_line=text.count("\n", 0, match.start()) + 1,
        last_line=text.count("\n", 0, _end_of_statement(text, head_end + 1)) + 1,
        pragma=pragma[1] if pragma else "none",
        head=tuple(text[match.end() : head_end].split(";")),
    )


def _end_of_statement(text: str, start: int) -> int:
    """The last letter of the statement that begins at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "({[") - (text[i] in ")}]")
        if depth < 0 or (depth == 0 and text[i] in ";}"):
            return i
    return len(text)


def _closing(text: str, start: int) -> int:
    """The bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "({[") - (text[i] in ")}]")
        if depth == 0:
            return i
    return len(text)
