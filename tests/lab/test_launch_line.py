"""The launch in a comment: what is read, and what is refused with which message."""

import pytest

from cupygpt.errors import LabError
from cupygpt.lab.launch_line import launch_lines

SIZES = {"N": 100, "C": 24, "PACK_SIZE": 4}


def test_a_line_gives_grid_block_shared_memory_and_constants() -> None:
    source = """// A comment.
// lab: grid = (ceil_div(N, 32), max(C // 8, 1) + 1), block = (32, 2 * 4), shared = C % 7, ROWS = 2
"""
    (line,) = launch_lines(source)
    launch = line.launch(SIZES)
    assert line.line == 2
    assert launch.grid == (4, 4)
    assert launch.block == (32, 8)
    assert launch.shared_bytes == 3
    assert launch.defines == {"ROWS": 2}


def test_a_line_without_a_grid_names_scratch_arrays() -> None:
    (line,) = launch_lines("  // lab: scores = N * N\n")
    assert not line.is_launch
    assert line.number("scores", SIZES) == 10000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid = (1, block = 2", "cannot be read"),
        ("grid = 1", "grid and block are both needed"),
        ("grid = 1, blocks = 2", "blocks is unknown"),
        ("", "is empty"),
        ("1, 2", "each part must be NAME = EXPRESSION"),
        ("**N", "each part must be NAME = EXPRESSION"),
        ("grid = 1, grid = 2, block = 1", "gives a name twice"),
    ],
)
def test_a_line_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        launch_lines(f"// lab: {text}")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("M", "M is unknown; there are C, N, PACK_SIZE"),
        ("N / 2", "`N / 2` is not allowed"),
        ("N ** N", "not allowed"),
        ("N // 0", "division or modulo by zero"),
        ("ceil_div(N)", "not allowed"),
        ("open('x')", "not allowed"),
        ("N.__class__", "not allowed"),
        ("[N]", "not allowed"),
        ("'4'", "not allowed"),
        ("True", "not allowed"),
        ("0", "grid is 0"),
        ("0 - N", "grid is -100"),
        ("(1, 1, 1, 1)", "one to three numbers"),
        ("N * 10000000000000", "larger than any launch"),
        ("(1, (2, 3))", "one to three numbers"),
    ],
)
def test_an_expression_that_cannot_be_computed(grid: str, message: str) -> None:
    (line,) = launch_lines(f"// lab: grid = {grid}, block = 32")
    with pytest.raises(LabError, match=message):
        line.launch(SIZES)


def test_an_endless_expression() -> None:
    """Python's parser, or the computation, meets its limit of nesting: each has its message."""
    text = "+".join(["1"] * 100_000)
    with pytest.raises(LabError, match=r"cannot be read|too long an expression"):
        launch_lines(f"// lab: grid = {text}, block = 32")[0].launch(SIZES)
