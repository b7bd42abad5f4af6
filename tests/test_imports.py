"""Imports run one way; those inside functions and those for types count too.

The rooms of cupygpt/, from top to bottom:

    lab > performance > emulator: these three no other room knows
    commands, interface > training > planning, evaluation > flags, exchange > run_folder, model
    > checkpoint, ops, texts > data, web, distributed, kernels > device > files
    the ground floor: the files directly in cupygpt/, and console

MAY_IMPORT says which of the rooms below it each room may use.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import cupygpt

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cupygpt"

MAY_IMPORT = {
    "interface": {
        *("training", "evaluation", "flags", "exchange", "run_folder", "model", "checkpoint"),
        *("ops", "data", "distributed", "kernels", "device"),
    },
    "training": {
        *("planning", "evaluation", "flags", "run_folder", "model", "checkpoint", "ops"),
        *("data", "distributed", "kernels", "device"),
    },
    "evaluation": {
        *("flags", "exchange", "run_folder", "model", "checkpoint", "texts"),
        *("data", "distributed", "kernels", "device"),
    },
    "exchange": {"run_folder", "model", "checkpoint", "data"},
    "planning": {
        *("flags", "exchange", "run_folder", "model", "checkpoint", "texts"),
        *("data", "distributed", "device"),
    },
    "flags": {"device"},
    "run_folder": {"checkpoint"},
    "model": {"ops", "distributed", "kernels", "device"},
    "checkpoint": {"data", "distributed"},
    "ops": {"kernels", "device"},
    "texts": {"data", "web", "device"},
    "web": set(),
    "data": set(),
    "distributed": {"device"},
    "kernels": {"device"},
    "device": set(),
    "emulator": {"kernels"},
    "performance": {"emulator", "kernels"},
    "lab": {"interface", "texts", "performance", "emulator", "ops", "kernels", "device"},
}
"""Besides itself and the ground floor. A new room needs a line here."""

GROUND_FLOOR = {
    "errors": set(),
    "arrays": set(),
    "cli": {"errors", "console"},
    "config": {"errors"},
    "console": {"errors"},
    "strict_json": {"errors", "files"},
    "cache_dir": set(),
    "files": {"errors"},
}
"""What every room may use, and what these use of each other: files directly in cupygpt/, and the
room console."""

COMMANDS = {"train", "sample", "prepare", "convert", "evaluate"}
"""What a person starts. No module imports them."""

IMPORTED_LATE = {
    *("cupy", "cuda", "tiktoken", "regex", "mpi4py", "resource", "IPython"),
    *("pyarrow", "compression", "backports"),
}
"""Packages that may be imported inside a function: they are slow, optional, or not everywhere."""


@dataclass(frozen=True)
class Import:
    """One imported name of one module; `name` is None for `import module`."""

    file: Path
    line: int
    target: str
    name: str | None
    in_function: bool

    def __str__(self) -> str:
        name = "" if self.name is None else f".{self.name}"
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.target}{name}"


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports_of(file: Path) -> list[Import]:
    return list(_walk(ast.parse(file.read_text()), file, in_function=False))


def _walk(node: ast.AST, file: Path, *, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, None, in_function)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno}: a relative import"
            for alias in child.names:
                target, name = f"{child.module}.{alias.name}", None
                if target not in MODULES:
                    target, name = str(child.module), alias.name
                yield Import(file, child.lineno, target, name, in_function)
        inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _walk(child, file, in_function=inside)


def all_imports() -> list[Import]:
    return [found for file in MODULES.values() for found in imports_of(file)]


def room_of(module: str) -> str:
    """The folder of a module of cupygpt, the module itself on the ground floor, "" for cupygpt."""
    return module.partition(".")[2].partition(".")[0]


def package_of(module: str) -> str:
    return module.partition(".")[0]


def is_ours(module: str) -> bool:
    return package_of(module) == "cupygpt"


def is_allowed(source: str, target: str) -> bool:
    """Whether modules of room `source` may import modules of room `target`."""
    if source in COMMANDS:
        return target not in COMMANDS
    if source in MAY_IMPORT:
        return target == source or target in GROUND_FLOOR or target in MAY_IMPORT[source]
    return target == source or target in GROUND_FLOOR[source]


def test_every_room_has_its_place() -> None:
    rooms = {room_of(module) for module in MODULES} - {""}
    assert rooms == {*MAY_IMPORT, *GROUND_FLOOR, *COMMANDS}


def test_what_a_room_may_import_is_imported() -> None:
    used: dict[str, set[str]] = {}
    for found in all_imports():
        used.setdefault(room_of(module_name(found.file)), set()).add(room_of(found.target))
    unused = {room: others - used[room] for room, others in MAY_IMPORT.items()}
    assert not {room: others for room, others in unused.items() if others}
    late = {package_of(found.target) for found in all_imports() if found.in_function}
    assert late >= IMPORTED_LATE


def test_the_list_in_the_readme_is_in_the_order_of_imports() -> None:
    text = (ROOT / "README.md").read_text()
    listed = re.findall(r"^\| `cupygpt/(\w+)/` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted({*MAY_IMPORT, "console"})
    for room, others in MAY_IMPORT.items():
        above = {other for other in others if listed.index(other) < listed.index(room)}
        assert not above, f"{room} may import {above}, which stand above it"


def test_no_import_goes_up() -> None:
    wrong = [
        str(found)
        for module, file in MODULES.items()
        for found in imports_of(file)
        if is_ours(found.target) and module != "cupygpt" and found.target != "cupygpt"
        if not is_allowed(room_of(module), room_of(found.target))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_uses_its_own_interface_for_nothing_but_the_version() -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if found.target == "cupygpt" and found.name not in (None, "__version__")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("graph", ["rooms", "modules"])
def test_no_two_import_each_other(graph: str) -> None:
    arrows: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        for found in imports_of(file):
            pair = [module, found.target]
            if graph == "rooms":
                pair = [room_of(name) for name in pair]
            if is_ours(found.target) and "cupygpt" not in (module, found.target):
                arrows.setdefault(pair[0], set()).add(pair[1])
    if graph == "rooms":
        arrows = {source: targets - {source} for source, targets in arrows.items()}
    while arrows:
        ends = {name for name, targets in arrows.items() if not targets & arrows.keys()}
        assert ends, f"a cycle among {sorted(arrows)}"
        arrows = {name: targets for name, targets in arrows.items() if name not in ends}


@cache
def loads_cupy(module: str) -> bool:
    """Whether importing a module of cupygpt imports CuPy at once."""
    return any(
        package_of(found.target) == "cupy" or (is_ours(found.target) and loads_cupy(found.target))
        for found in imports_of(MODULES[module])
        if not found.in_function and found.target != "cupygpt"  # which loads nothing
    )


def test_imports_stand_at_the_top() -> None:
    """Only what is slow, optional or brings CuPy may wait for the function that needs it."""
    wrong = [
        str(found)
        for found in all_imports()
        if found.in_function and module_name(found.file) != "cupygpt"
        if package_of(found.target) not in IMPORTED_LATE
        if not (is_ours(found.target) and loads_cupy(found.target))
    ]
    assert not wrong, "\n".join(wrong)


@cache
def names_defined_by(file: Path) -> set[str]:
    """What a module defines at its top level; imported names are not among them."""
    return set(_defined(ast.parse(file.read_text())))


def _defined(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield child.name
            continue
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        yield from _defined(child)


def test_names_come_from_the_module_that_defines_them() -> None:
    files = [*MODULES.values(), *(ROOT / "tools").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    wrong = [
        str(found)
        for file in files
        for found in imports_of(file)
        if is_ours(found.target) and found.name is not None and found.target != "cupygpt"
        if found.name not in names_defined_by(MODULES[found.target])
    ]
    assert not wrong, "\n".join(wrong)


def test_tests_take_cupy_from_one_place() -> None:
    """From `require_cupy`, which skips a test with the reason where there is no GPU or no CuPy."""
    tests = ROOT / "tests"
    only = {tests / "support" / "gpu.py", tests / "emulator" / "make_mma_golden.py"}
    found = [found for file in tests.rglob("*.py") for found in imports_of(file)]
    of_cupy = [one for one in found if package_of(one.target) in {"cupy", "cupyx"}]
    assert {one.file for one in of_cupy} == only
    assert all(one.in_function for one in of_cupy)


def test_the_package_itself_loads_nothing() -> None:
    """Names that it offers are loaded when they are asked for."""
    program = (
        "import sys, cupygpt\n"
        "heavy = {'numpy', 'cupy', 'tiktoken', 'rich'} & sys.modules.keys()\n"
        "rooms = [name for name in sys.modules if name.startswith('cupygpt.')]\n"
        "assert not heavy and not rooms, (heavy, rooms)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_the_names_of_the_package_load_neither_cupy_nor_tokenizers() -> None:
    """All of them, as types as well as at run time."""
    typed = {found.name for found in imports_of(MODULES["cupygpt"]) if is_ours(found.target)}
    assert typed == set(cupygpt.__all__)
    program = (
        "import sys, cupygpt\n"
        "for name in cupygpt.__all__:\n"
        "    assert getattr(cupygpt, name).__module__.startswith('cupygpt.'), name\n"
        "heavy = {'cupy', 'tiktoken', 'IPython'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert not hasattr(cupygpt, 'train')\n"
        "import cupygpt.train\n"
        "assert cupygpt.train.main\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_the_ground_floor_and_the_files_know_no_kernel() -> None:
    """Also not through what they import: text, tokens and checkpoints need no GPU library."""
    for module in MODULES:
        if room_of(module) in {"data", "texts", "checkpoint", *GROUND_FLOOR}:
            reached = reached_from(module)
            wrong = [name for name in reached if room_of(name) in {"kernels", "ops", "model"}]
            assert not wrong, f"{module} reaches {wrong}"
            assert not loads_cupy(module), module


@cache
def reached_from(module: str) -> set[str]:
    """The modules of cupygpt that are loaded with a module."""
    targets = {i.target for i in imports_of(MODULES[module]) if is_ours(i.target)} - {"cupygpt"}
    return targets.union(*(reached_from(target) for target in targets))


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_reaches_the_emulator(command: str) -> None:
    """It needs g++, and only serves tests and those who write kernels."""
    assert "emulator" not in {room_of(name) for name in reached_from(f"cupygpt.{command}")}
