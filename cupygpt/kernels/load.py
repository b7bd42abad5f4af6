"""Find the .cu files, compile each variant once, and list the variants that a run will need."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cupygpt.errors import KernelError
from cupygpt.kernels.nvrtc import compile_options, load_cupy_module

FLOATX_TYPES = {np.dtype(np.float32): "float", np.dtype(np.uint16): "__nv_bfloat16"}
"""C++ type of floatX by the dtype of the arrays."""


class Module(Protocol):
    """A compiled .cu file."""

    def get_function(self, name: str) -> Any:
        """The kernel `name`, a Function."""


Loader = Callable[[Path, tuple[str, ...]], Module]
"""Compiles the .cu file at a path with compiler options."""


class Variant(NamedTuple):
    """A .cu file and all that decides what the compiler makes of it."""

    array_type: type
    """Type of the arrays: it decides which loader compiles the file."""
    file: str
    floatX: str
    """C++ type of floatX."""
    constants: tuple[tuple[str, int], ...]
    """(NAME, VALUE) of each -DNAME=VALUE, sorted."""
    arch: str = ""
    """The architecture that the file is written for (sm_90a); empty for that of the device."""


_recorded: dict[Variant, set[str]] | None = None
"""While `record_kernels` runs: the variants so far, each with the kernels launched from it."""

_loaders: dict[type, Loader] = {}
_modules: dict[Variant, Module] = {}


def register_loader(array_type: type, loader: Loader) -> None:
    """Compile kernels for arrays of exactly `array_type` by `loader(path, options)`."""
    _loaders[array_type] = loader


def find_cuda_dir() -> Path:
    """The folder with the .cu files: inside an installed package, or next to it in a checkout.

    Raises KernelError if it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "cuda", package.parent / "cuda"):
        if (folder / "lib" / "packs.cuh").is_file():
            return folder
    raise KernelError(
        f"the kernels (*.cu) are neither in {package / 'cuda'} nor in "
        f"{package.parent / 'cuda'}. Install cupygpt again."
    )


def load_module(variant: Variant) -> Module:
    """The compiled form of a variant; each variant is compiled once.

    Raises KernelError if the file is missing, if kernels do not run on such arrays, or if the file
    does not compile.
    """
    if variant not in _modules:
        cuda_dir = find_cuda_dir()
        path = cuda_dir / variant.file
        if not path.is_file():
            raise KernelError(f"{path}: no such file.")
        options = compile_options(cuda_dir, variant.floatX, dict(variant.constants), variant.arch)
        _modules[variant] = _loader_for(variant.array_type)(path, options)
    return _modules[variant]


def record_kernels(dry_run: Callable[[], None]) -> dict[Variant, set[str]]:
    """Call `dry_run`, launch none of its kernels, and return what it would have launched.

    Returns the variants in the order of their first launch, each with the names of the kernels
    launched from it. So the list of what a run must compile follows from the code that launches.
    """
    global _recorded
    _recorded = {}
    try:
        dry_run()
        return _recorded
    finally:
        _recorded = None


def is_recording() -> bool:
    """Whether `record_kernels` is running: then a launch is recorded and nothing else."""
    return _recorded is not None


def record(variant: Variant, kernel: str) -> None:
    """Record a launch for `record_kernels`."""
    assert _recorded is not None
    _recorded.setdefault(variant, set()).add(kernel)


def precompile(
    variants: Collection[Variant],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    set_up_thread: Callable[[], None] = lambda: None,
) -> None:
    """Compile what `record_kernels` returned, in parallel.

    `progress(done, total)` is called after each file, and `set_up_thread` in each thread before its
    first file (a new thread uses CUDA device 0). Raises the first KernelError.
    """
    with ThreadPoolExecutor(initializer=set_up_thread) as pool:
        futures = [pool.submit(load_module, variant) for variant in variants]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(variants))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def forget_modules() -> None:
    """Compile, or load from the disk cache, each file again at its next use."""
    _modules.clear()


def _loader_for(array_type: type) -> Loader:
    if array_type in _loaders:
        return _loaders[array_type]
    if array_type.__module__.partition(".")[0] == "cupy":
        return load_cupy_module
    raise KernelError(f"kernels do not run on arrays of type {array_type.__name__}.")
