"""How many loads are under way, read from the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupygpt.emulator.counted import AccessCounts
from cupygpt.emulator.places import Place
from cupygpt.performance.unrolling import of_access

CASES = {
    "no loop": ("LOAD;", 1, 16),
    "constant step": ("for (int i = 0; i < n; i++) LOAD;", 40, 16),
    "constant step in a block": ("for (int i = 0; i < n; i += WARP) {\n    LOAD;\n}", 40, 16),
    "ends before it fills its unrolling": ("for (int i = 0; i < n; i++) LOAD;", 8, 1),
    "step known at run time": ("for (int i = 0; i < n; i += blockDim.x) LOAD;", 40, 1),
    "while": ("while (i < n) LOAD;", 40, 1),
    "unroll 1": ("#pragma unroll 1\nfor (int i = 0; i < n; i++) LOAD;", 40, 1),
    "unroll 4": ("#pragma unroll 4\nfor (int i = 0; i < n; i++) LOAD;", 40, 4),
    "unroll (2)": ("#pragma unroll (2)\nfor (int i = 0; i < n; i++) LOAD;", 40, 2),
    "known length": ("for (int i = 0; i < 4; i++) LOAD;", 4, 4),
    "known length, steps of 8": ("for (int i = 0; i < 32; i += 8) LOAD;", 4, 4),
    "length by a name": ("#define N 8\nfor (int i = 0; i < N; i++) LOAD;", 8, 8),
    "length by another file's name": ("for (int i = 0; i < COLUMNS; i++) LOAD;", 24, 16),
    "four in one round": (
        "for (int row = y; row < n; row += step)\n    for (int i = 0; i < 4; i++) LOAD;",
        40,
        4,
    ),
    "a pragma of another loop": (
        "#pragma unroll 1\nfor (int j = 0; j < n; j++) x++;\nfor (int i = 0; i < n; i++) LOAD;",
        40,
        16,
    ),
    "after a loop": ("for (int i = 0; i < n; i += step) {\n}\nLOAD;", 1, 16),
    "only a comment": ("// for (int i = 0; i < n; i += step)\nLOAD;", 1, 16),
    "brackets in a string": ('for (int i = 0; i < n; i += step) f("}");\nLOAD;', 1, 16),
    "unfinished": ("for (int i = 0; i < n; i += step", 1, 16),
}


@pytest.mark.parametrize(("code", "passes", "expected"), CASES.values(), ids=CASES)
def test_loads_under_way(tmp_path: Path, code: str, passes: int, expected: int) -> None:
    file = tmp_path / "kernel.cu"
    file.write_text(code)
    line = next((i for i, row in enumerate(code.splitlines(), 1) if "LOAD" in row), 2)
    sums = dict.fromkeys(
        ("lanes", "sectors", "cache_lines", "turns", "parts", "joined_requests", "joined_turns"), 0
    )
    access = AccessCounts(
        place=Place(file, line),
        space="global",
        kind="read",
        array="in",
        bytes=4,
        requests=10 * passes,
        stride=4,
        **sums,
    )
    assert of_access(access, warps=10) == expected
