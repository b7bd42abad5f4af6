"""Which functions check which .cu file: the mutation test runs them against every mutant.

A function is registered by the file whose kernels it runs. It takes no arguments, runs the op or
the kernel on emulated arrays, and raises where the result is wrong:

    @case("gelu.cu")
    def gelu_forward() -> None:
        out = emulated_empty(1000)
        ops.gelu_forward(out, inp)
        ...

Modules that register cases are listed in CASE_MODULES.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., None])

CASES: dict[str, list[Callable[..., None]]] = defaultdict(list)
"""The functions that check a .cu file, by its name."""


def case(*files: str) -> Callable[[Function], Function]:
    """Register a function, callable without arguments, as a check of these .cu files."""

    def register(function: Function) -> Function:
        for file in files:
            CASES[file].append(function)
        return function

    return register


CASE_MODULES = ["emulator.sample_cases", "emulator.op_cases"]
"""Where cases are registered."""


def all_cases() -> dict[str, list[Callable[..., None]]]:
    """CASES, after every module of CASE_MODULES has been imported."""
    for name in CASE_MODULES:
        importlib.import_module(name)
    return CASES
