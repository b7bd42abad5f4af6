"""Runs .cu files on the CPU, without a GPU or CUDA: `EmulatedModule` takes the place of RawModule.

    module = EmulatedModule(Path("cuda/gelu.cu"), ["-DfloatX=float"])
    module.get_function("gelu_forward")((4,), (256,), (out, inp, np.int32(1000)))

`emulated` and `emulated_empty` of arrays.py make the arrays. README.md explains the rest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.counted import Counts
from cupygpt.emulator.launching import EmulatedKernel
from cupygpt.emulator.toolchain import compile_module
from cupygpt.kernels.launch import DEFAULT_SHARED_BYTES

TIMEOUT_S = 120
"""CPU time after which a kernel counts as an endless loop."""


class EmulatedModule:
    """A .cu file compiled for the emulator.

    Args:
        path: the .cu file.
        options: as for NVRTC; those that have no meaning for g++ are ignored.
        mode: run under the checker of accesses (races, bounds, alignment, uninitialised shared
            memory, asynchronous copies), without it, or with it while requests are counted.
        portable_switch: switch between threads by ucontext even where there is a faster way.
        timeout_s: CPU time that one launch may take.

    Raises:
        CompileError: the file does not compile, or uses something that is not emulated.
    """

    def __init__(
        self,
        path: Path,
        options: Sequence[str] = (),
        *,
        mode: Mode = Mode.CHECKED,
        portable_switch: bool = False,
        timeout_s: int = TIMEOUT_S,
    ) -> None:
        self.path, self.mode, self.timeout_s = path, mode, timeout_s
        self._compiled = compile_module(path, options, mode=mode, portable_switch=portable_switch)
        self.kernel_names = tuple(self._compiled.parameters)
        """The entry points, in the file's order."""
        self._library = ctypes.CDLL(str(self._compiled.library))
        self._kernels: dict[str, EmulatedKernel] = {}

    def get_function(self, name: str) -> EmulatedKernel:
        """The kernel `name`; KeyError lists those that the file has."""
        if name not in self.kernel_names:
            raise KeyError(f"{self.path} has no kernel {name}, only {', '.join(self.kernel_names)}")
        if name not in self._kernels:
            self._kernels[name] = EmulatedKernel(
                self._compiled,
                self._library,
                name,
                mode=self.mode,
                timeout_s=self.timeout_s,
            )
        return self._kernels[name]


_loaded: dict[tuple[Path, tuple[str, ...], Mode], EmulatedModule] = {}
_substitutes: dict[Path, Path] = {}


def load(path: Path, options: Sequence[str], *, mode: Mode = Mode.CHECKED) -> EmulatedModule:
    """The module of a .cu file, compiled once per process: a loader for launch code.

    Raises CompileError as EmulatedModule does.
    """
    path = path.resolve()
    for folder, other in _substitutes.items():
        if folder in path.parents:
            path = other / path.relative_to(folder)
        options = [f"-I{other}" if option == f"-I{folder}" else option for option in options]
    key = (path, tuple(options), mode)
    if key not in _loaded:
        _loaded[key] = EmulatedModule(path, options, mode=mode)
    return _loaded[key]


@contextmanager
def substituted(folder: Path, other: Path) -> Iterator[None]:
    """Inside this context `load` takes the files of `folder`, and its headers, from `other`.

    This is how mutants reach launch code that does not know about them.
    """
    _substitutes[folder.resolve()] = other.resolve()
    try:
        yield
    finally:
        del _substitutes[folder.resolve()]


_counted: list[Counts] | None = None
"""While `counting` runs: the launches until now."""


@contextmanager
def counting() -> Iterator[list[Counts]]:
    """Inside this context ops on emulated arrays count: the list grows by each launch.

    with counting() as launches:
        gelu_forward(out, inp)
    report.text(launches[0], GPUS["H100"])
    """
    global _counted
    before, _counted = _counted, []
    try:
        yield _counted
    finally:
        _counted = before


class _LateKernel:
    """A kernel that is looked up at each launch: `substituted` also reaches those that are kept."""

    max_dynamic_shared_size_bytes = DEFAULT_SHARED_BYTES
    shared_size_bytes = 0

    def __init__(self, path: Path, options: tuple[str, ...], name: str) -> None:
        self._path, self._options, self._name = path, options, name

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0
    ) -> None:
        mode = Mode.CHECKED if _counted is None else Mode.COUNTED
        kernel = load(self._path, self._options, mode=mode).get_function(self._name)
        kernel.max_dynamic_shared_size_bytes = self.max_dynamic_shared_size_bytes
        if _counted is None:
            kernel(grid, block, args, shared_mem)
        else:
            _counted.append(kernel.count(grid, block, args, shared_mem))


class _LateModule:
    def __init__(self, path: Path, options: tuple[str, ...]) -> None:
        self._path, self._options = path, options

    def get_function(self, name: str) -> _LateKernel:
        return _LateKernel(self._path, self._options, name)


def loader(path: Path, options: Sequence[str]) -> _LateModule:
    """The loader for EmulatedArray that cupygpt.kernels.load.register_loader takes.

    Kernels run under the checker and are compiled at their first launch, which may raise
    CompileError; otherwise they raise as EmulatedKernel does.
    """
    return _LateModule(path, tuple(options))
