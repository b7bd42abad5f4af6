"""An op stands in several places, and none of them is forgotten.

`missing_places` looks for each of them and says what to do. The tables of exceptions say why an op
has no need of a place.
"""

import importlib
from functools import cache
from pathlib import Path

import pytest
import step_calls
from emulator.cases import all_cases
from support.launched_variants import NEVER_LAUNCHED, USUAL_RUNS, launched_variants

from cupygpt.kernels import kernel as kernels

ROOT = Path(__file__).parents[2]
CUDA_DIR, OPS_DIR = ROOT / "cuda", ROOT / "cupygpt" / "ops"

OP_OF_SECOND_FILE = {"layernorm_backward": "layernorm"}
"""Ops with two files in cuda/, because each is compiled with constants of its own."""

NO_OPS = {"lib", "lab"}
"""Folders of cuda/ that are no ops: what kernels share, and the ladders of the lab."""

WITHOUT_COST = {"sampling": "it draws the tokens of a text, no training step calls it"}
"""Ops that the tools which time a training step do not know, and why."""


def all_ops() -> list[str]:
    """The names that stand in cuda/ or in cupygpt/ops/."""
    names = {path.stem for path in CUDA_DIR.glob("*.cu")}
    names |= {folder.name for folder in CUDA_DIR.iterdir() if folder.is_dir()} - NO_OPS
    names |= {path.stem for path in OPS_DIR.glob("*.py")} - {"__init__"}
    return sorted({OP_OF_SECOND_FILE.get(name, name) for name in names})


def files_of(op: str) -> list[str]:
    """The .cu files of an op, as Kernel names them."""
    second = {file for file, owner in OP_OF_SECOND_FILE.items() if owner == op}
    names = [f"{name}.cu" for name in sorted({op} | second)]
    folder = [path.relative_to(CUDA_DIR).as_posix() for path in sorted(CUDA_DIR.glob(f"{op}/*.cu"))]
    return [name for name in names if (CUDA_DIR / name).exists()] + folder


def functions_of(op: str) -> set[str]:
    """The functions that cupygpt/ops/<op>.py defines; importing it declares its kernels."""
    module = importlib.import_module(f"cupygpt.ops.{op}")
    return {
        name for name, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__
    }


@cache
def launched_kernels() -> set[tuple[str, str]]:
    """(file, kernel) of all that runs launch on an Ampere and on a Hopper GPU."""
    return {
        (variant.file, kernel)
        for capability in ("80", "90")
        for variant, names in launched_variants(capability, USUAL_RUNS).items()
        for kernel in names
    }


def missing_places(op: str) -> list[str]:
    """What is still to be done for an op."""
    todo = []
    files = files_of(op)
    if not files:
        todo.append(f"write the kernels: cuda/{op}.cu, or a folder cuda/{op}/")
    has_module = (OPS_DIR / f"{op}.py").exists()
    if not has_module:
        todo.append(f"write contract, NumPy form and launch: cupygpt/ops/{op}.py")
    if not (ROOT / "tests" / "ops" / f"test_{op}.py").exists():
        todo.append(f"write a test: tests/ops/test_{op}.py")
    unchecked = [file for file in files or [f"{op}.cu"] if not all_cases()[file]]
    if unchecked:
        todo.append(f"add check(...) for {unchecked} to tests/emulator/op_cases.py")
    functions = functions_of(op) if has_module else set()
    if not functions & step_calls.OPS.keys() and op not in WITHOUT_COST:
        todo.append(f"add the functions of cupygpt/ops/{op}.py to OPS in tools/step_calls.py")
    declared = {(k.file, k.name) for k in kernels._kernels if k.file in files}
    idle = {name for _, name in declared - launched_kernels()} - NEVER_LAUNCHED.keys()
    if idle or not declared:
        todo.append(f"call the op in cupygpt/model/: no run launches {sorted(idle) or 'it'}")
    return todo


@pytest.mark.parametrize("op", all_ops())
def test_every_op_is_complete(op: str) -> None:
    todo = missing_places(op)
    assert not todo, f"the op {op} is not complete:\n" + "\n".join(f"- {line}" for line in todo)


def test_a_forgotten_place_is_named() -> None:
    todo = "\n".join(missing_places("swish"))
    for place in (
        "cuda/swish.cu",
        "cupygpt/ops/swish.py",
        "tests/ops/test_swish.py",
        "op_cases.py",
        "step_calls.py",
        "cupygpt/model/",
    ):
        assert place in todo


def test_exceptions_are_needed() -> None:
    assert not [op for op in WITHOUT_COST if functions_of(op) & step_calls.OPS.keys()]
    assert not [name for name in NEVER_LAUNCHED if name in {k for _, k in launched_kernels()}]
