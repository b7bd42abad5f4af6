"""What Python declares of the kernels is what the .cu files say."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from support.launched_variants import TRAINER_FILES

import cupygpt.ops
from cupygpt.kernels import kernel as kernels
from cupygpt.kernels.kernel import Kernel

for op in pkgutil.iter_modules(cupygpt.ops.__path__, "cupygpt.ops."):
    importlib.import_module(op.name)
DECLARED = list(kernels._kernels)
CUDA_DIR = Path(__file__).parents[2] / "cuda"

C_TYPES = {
    "floatX": "floatX",
    "float": "f32",
    "float2": "f32",
    "double": "f64",
    "int": "i32",
    "long long": "i64",
    "unsigned": "u32",
    "unsigned long long": "u64",
    "__nv_bfloat16": "u16",
}


def declared_in_file(kernel: Kernel) -> list[tuple[str, str]]:
    """(name, type code) of the parameters of the entry point in the .cu file."""
    text = (CUDA_DIR / kernel.file).read_text()
    entry = re.search(rf"__global__[^;{{]*?\b{kernel.name}\(([^)]*)\)\s*\{{", text)
    assert entry, f"{kernel.file} has no kernel {kernel.name}"
    found = []
    for parameter in entry[1].split(","):
        words = parameter.replace("const ", "").replace("*", " * ").split()
        name, pointer = words[-1], "*" * ("*" in words)
        ctype = " ".join(w for w in words[:-1] if w not in ("*", "__restrict__"))
        found.append((name, C_TYPES.get(ctype, ctype) + pointer))  # a struct has its own name
    return found


@pytest.mark.parametrize("kernel", DECLARED, ids=lambda k: k.name)
def test_declaration_matches_the_file(kernel: Kernel) -> None:
    declared = [(p.name, p.type + "*" * p.is_array) for p in kernel.parameters]
    assert declared == declared_in_file(kernel)


def test_every_kernel_is_declared() -> None:
    entries = []
    for file in TRAINER_FILES:
        text = re.sub(r"__launch_bounds__\([^)]*\)", "", (CUDA_DIR / file).read_text())
        entries += re.findall(r"__global__\s+void\s+(\w+)\(", text)
    assert sorted(entries) == sorted(kernel.name for kernel in DECLARED)
