"""A .cu file with the launches of its kernels: a rung of a ladder, or a learner's own."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cupygpt.emulator.arrays import emulated_empty
from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.counted import Counts
from cupygpt.emulator.emulate import EmulatedModule
from cupygpt.emulator.launching import EmulatedKernel
from cupygpt.errors import LabError
from cupygpt.kernels.launch import DEFAULT_SHARED_BYTES, Launch
from cupygpt.kernels.load import compile_options, find_cuda_dir
from cupygpt.lab.launch_line import LaunchLine, launch_lines

MAX_FILE_BYTES = 1 << 20
"""Of a kernel file. The largest in cuda/ has 20 KB."""

TIMEOUT_S = 10
"""CPU time after which a kernel of the lab counts as an endless loop."""

_SCALARS = {"i32": np.int32, "i64": np.int64, "f32": np.float32}
"""The types of scalar parameters, by the emulator's code."""

_OF_ARRAYS = {"f32": "float32", "f64": "float64", "b16": "bfloat16", "i32": "int32"}
"""The types of the elements of arrays, by the emulator's code; of others the emulator complains."""

_HELD = {"float32": "float32", "uint16": "bfloat16", "int32": "int32"}
"""What an array of this NumPy type holds."""

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)

_PACK_SIZES = {"float": 4, "__nv_bfloat16": 8}


@dataclass(frozen=True)
class Arguments:
    """What an op is called with: its parameters by name, in its order, arrays and numbers.

    `sizes` are the names that a launch may use. `floatX` is the C++ type of the elements.
    """

    parameters: Mapping[str, Any]
    sizes: Mapping[str, int]
    floatX: str

    @property
    def names(self) -> dict[str, int]:
        """The sizes, and PACK_SIZE."""
        return {**self.sizes, "PACK_SIZE": _PACK_SIZES[self.floatX]}


class Call(NamedTuple):
    """One kernel with what it is launched with."""

    kernel: EmulatedKernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    values: list[Any]
    shared_bytes: int


@dataclass(frozen=True)
class KernelFile:
    """A .cu file whose comments `// lab:` say how its kernels are launched (launch_line.py)."""

    path: Path
    source: str

    @classmethod
    def read(cls, path: Path) -> "KernelFile":
        """Read a file. Raises LabError where it is missing, too large or no text."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise LabError(f"{path}: {error.strerror or error}.") from None
        if len(data) > MAX_FILE_BYTES:
            raise LabError(f"{path} has more than 1 MiB, which is too long for a kernel file.")
        try:
            return cls(path, data.decode())
        except UnicodeDecodeError as error:
            raise LabError(f"{path}, byte {error.start}: not UTF-8 text.") from None

    @property
    def includes_neighbours(self) -> bool:
        """Whether it includes files that lie beside it: its text alone does not say what it is."""
        names = _INCLUDE.findall(self.source)
        return any((self.path.parent / name).exists() for name in names)

    def launches(self, arguments: Arguments) -> list[Launch]:
        """The launch of each kernel, in the file's order. Raises LabError where there is none."""
        found = [line.launch(arguments.names) for line in self._lines if line.is_launch]
        if not found:
            raise LabError(
                f"{self.path}: no line says how the kernel is launched. Add one, such as "
                "`// lab: grid = ceil_div(N, 256), block = 256`."
            )
        return found

    def defines(self, arguments: Arguments) -> dict[str, int]:
        """The constants that the file is compiled with: those of its launches, and HS."""
        found = {"HS": arguments.sizes["HS"]} if "HS" in arguments.sizes else {}
        for launch in self.launches(arguments):
            found.update(launch.defines)
        return found

    def module(self, arguments: Arguments, mode: Mode = Mode.CHECKED) -> EmulatedModule:
        """The file compiled for the emulator. Raises CompileError."""
        return EmulatedModule(self.path, self.options(arguments), mode=mode, timeout_s=TIMEOUT_S)

    def options(self, arguments: Arguments) -> tuple[str, ...]:
        """The compiler's options, for the emulator and for a GPU."""
        return compile_options(find_cuda_dir(), arguments.floatX, self.defines(arguments))

    def run(self, arguments: Arguments) -> None:
        """Run all kernels on emulated arrays, in the file's order, under the checker.

        A file with one kernel takes the op's parameters in their order, whatever it calls them. One
        with several takes those that it needs by name.

        Raises:
            LabError: launches and kernels do not fit each other, or the op.
            CompileError, KernelFault, TypeError, ValueError: as the emulator raises them.
        """
        for call in self.calls(arguments, Mode.CHECKED):
            call.kernel(call.grid, call.block, call.values, call.shared_bytes)

    def count(self, arguments: Arguments) -> list[Counts]:
        """As `run`; returns what each launch asked of a GPU."""
        return [
            call.kernel.count(call.grid, call.block, call.values, call.shared_bytes)
            for call in self.calls(arguments, Mode.COUNTED)
        ]

    def calls(
        self, arguments: Arguments, mode: Mode, empty: Callable[[int], Any] = emulated_empty
    ) -> list["Call"]:
        """How each kernel is called; `empty` makes float32 arrays for scratch."""
        module, launches = self.module(arguments, mode), self.launches(arguments)
        names = module.kernel_names
        if not names:
            raise LabError(f'{self.path} has no kernel: extern "C" __global__ void name(...)')
        if len(names) != len(launches):
            raise LabError(
                f"{self.path}: number of kernels {len(names)} ({', '.join(names)}), of lines "
                f"`// lab: grid = …` {len(launches)}; each kernel needs one, in the file's order."
            )
        given = {**arguments.parameters, **self._scratch(arguments, empty)}
        found = []
        for name, launch in zip(names, launches, strict=True):
            kernel = module.get_function(name)
            kernel.max_dynamic_shared_size_bytes = max(DEFAULT_SHARED_BYTES, launch.shared_bytes)
            chosen = self._chosen(kernel, given, by_name=len(names) > 1)
            self._check_types(kernel, chosen)
            values = [_argument(*pair) for pair in zip(kernel.parameters, chosen, strict=True)]
            found.append(
                Call(kernel, _tuple(launch.grid), _tuple(launch.block), values, launch.shared_bytes)
            )
        return found

    def _check_types(self, kernel: EmulatedKernel, chosen: list[Any]) -> None:
        for name, code, value in zip(
            kernel.parameter_names, kernel.parameters, chosen, strict=True
        ):
            is_array, wanted = code.endswith("*"), isinstance(value, np.ndarray)
            if is_array != wanted:
                what = "an array" if wanted else "a number"
                raise LabError(f"{self.path}: {kernel.name}, {name}: the op gives {what} there.")
            held = _HELD.get(value.dtype.name, "") if wanted else ""
            if held and code[:3] in _OF_ARRAYS and _OF_ARRAYS[code[:3]] != held:
                raise LabError(
                    f"{self.path}: {kernel.name}, {name}: its elements are {_OF_ARRAYS[code[:3]]}, "
                    f"those of the op are {held} here. floatX is the type that "
                    "changes; `try --dtype fp32` judges float only."
                )

    def _chosen(
        self, kernel: EmulatedKernel, given: Mapping[str, Any], *, by_name: bool
    ) -> list[Any]:
        """The arguments of one kernel, of all that are given."""
        wanted = kernel.parameter_names
        if by_name:
            for name in wanted:
                if name not in given:
                    raise LabError(
                        f"{self.path}: {kernel.name} has a parameter {name}. A file with several "
                        f"kernels gets its parameters by name; there are {', '.join(given)}."
                    )
            return [given[name] for name in wanted]
        if len(wanted) != len(given):
            raise LabError(
                f"{self.path}: {kernel.name} has {len(wanted)} parameters, the op has "
                f"{len(given)}: {', '.join(given)}."
            )
        if set(wanted) == set(given) and list(wanted) != list(given):
            raise LabError(
                f"{self.path}: a single kernel takes the op's parameters in the op's order, which "
                f"is {', '.join(given)}; that of {kernel.name} is {', '.join(wanted)}."
            )
        return list(given.values())

    @cached_property
    def _lines(self) -> list[LaunchLine]:
        return launch_lines(self.source)

    def _scratch(self, arguments: Arguments, empty: Callable[[int], Any]) -> dict[str, Any]:
        return {
            name: empty(line.number(name, arguments.names))
            for line in self._lines
            if not line.is_launch
            for name in line.settings
        }


def _argument(code: str, value: Any) -> Any:
    """`value` as a parameter of this code takes it (EmulatedKernel.parameters)."""
    if code[3:] == "*" or code[:3] not in _SCALARS:
        return value
    return _SCALARS[code[:3]](value)


def _tuple(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return size if isinstance(size, tuple) else (size,)
