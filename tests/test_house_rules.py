"""What keeps the code easy to read: small folders, files and functions, and no long line."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cupygpt"

COMMANDS = {"train.py", "sample.py", "prepare.py", "convert.py", "evaluate.py"}
MOST_FILES_ON_THE_GROUND_FLOOR = 10
MOST_FILES_IN_A_ROOM = 14
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 66
MOST_COLUMNS = 100


def python_files() -> list[Path]:
    return sorted(
        file for name in ("cupygpt", "tests", "tools") for file in (ROOT / name).rglob("*.py")
    )


def test_the_ground_floor_holds_few_files() -> None:
    files = {file.name for file in PACKAGE.glob("*.py")}
    assert files >= COMMANDS
    assert len(files - COMMANDS) <= MOST_FILES_ON_THE_GROUND_FLOOR


def test_a_room_holds_few_files() -> None:
    rooms = [folder for folder in PACKAGE.rglob("*") if (folder / "__init__.py").exists()]
    sizes = {room.name: len({*room.glob("*.py")} - {room / "__init__.py"}) for room in rooms}
    assert sizes
    assert max(sizes.values()) <= MOST_FILES_IN_A_ROOM, sizes


def test_a_folder_of_tests_holds_few_files() -> None:
    """Each operation has a test of its own in tests/ops/, however many there are."""
    of_ops = {f"test_{file.name}" for file in (PACKAGE / "ops").glob("*.py")}
    files = [file for file in (ROOT / "tests").rglob("*.py") if file.name != "__init__.py"]
    sizes = Counter(file.parent.relative_to(ROOT).as_posix() for file in files)
    sizes["tests/ops"] -= sum(file.name in of_ops for file in files)
    assert max(sizes.values()) <= MOST_FILES_IN_A_ROOM, sizes


def test_no_file_is_long() -> None:
    lines = {
        file.relative_to(ROOT).as_posix(): len(file.read_text().splitlines())
        for file in python_files()
    }
    long = {name: n for name, n in lines.items() if n > MOST_LINES}
    assert not long


def test_no_function_is_long() -> None:
    long = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": lines
        for file in python_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    }
    assert not long


def test_no_line_of_a_kernel_is_long() -> None:
    """Ruff looks at the Python files (E501)."""
    sources = sorted(
        file
        for folder in (ROOT / "cuda", PACKAGE / "emulator", ROOT / "tests" / "emulator")
        for file in folder.rglob("*")
        if file.suffix in {".cu", ".cuh", ".h", ".cpp"}
    )
    assert any(file.suffix == ".cuh" for file in sources)
    long = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sources
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if len(line) > MOST_COLUMNS
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    ("thing", "most_files", "word"),
    [("A batch", 11, ""), ("A checkpoint", 7, ""), ("A flag", 7, "dropout")],
)
def test_a_walk_of_contributing_is_short_and_true(thing: str, most_files: int, word: str) -> None:
    """It names files that exist, and those of the flag name the flag."""
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    walks = text.split("## Three walks")[1].split("\n## ")[0]
    walk = walks.split(f"**{thing}**")[1].split("**")[0]
    files = re.findall(r"^\d+\. `(\S+)`: ", walk, re.MULTILINE)
    assert 0 < len(files) <= most_files
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert [name for name in files if word not in (ROOT / name).read_text()] == []
