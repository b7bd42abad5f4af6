"""Find, compile and keep the .cu files."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

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

Job = tuple[type, str, str, tuple[tuple[str, int], ...], str]
"""What one compilation follows from: array type, .cu file, floatX, constants and architecture."""

_recorded: dict[Job, None] | None = None
"""While `record_kernels` runs: the jobs found so far, in order."""

_loaders: dict[type, Loader] = {}
_modules: dict[Any, Module] = {}


def register_loader(array_type: type, loader: Loader) -> None:
    """Run kernels on arrays of exactly `array_type` through `loader(path, options)`."""
    _loaders[array_type] = loader


def find_cuda_dir() -> Path:
    """The folder with the .cu files: inside an installed package, or beside it in a checkout.

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


def load_module(
    array_type: type,
    file: str,
    floatX: str,
    constants: tuple[tuple[str, int], ...],
    arch: str = "",
) -> Module:
    """The compiled form of cuda/`file` for arrays of a type; compiled once per set of options.

    Raises KernelError if there is no such file, no way to run kernels on such arrays, or if the
    file does not compile.
    """
    key = (array_type, file, floatX, constants, arch)
    if key not in _modules:
        cuda_dir = find_cuda_dir()
        path = cuda_dir / file
        if not path.is_file():
            raise KernelError(f"{path}: no such file.")
        options = compile_options(cuda_dir, floatX, dict(constants), arch)
        _modules[key] = _loader_for(array_type)(path, options)
    return _modules[key]


def record_kernels(dry_run: Callable[[], None]) -> list[Job]:
    """The compilations that the launches inside `dry_run` need; no kernel is launched meanwhile.

    This way the list of kernels follows from the code that launches them.
    """
    global _recorded
    _recorded = {}
    try:
        dry_run()
        return list(_recorded)
    finally:
        _recorded = None


def is_recording() -> bool:
    """Whether `record_kernels` is running: launches only leave their job."""
    return _recorded is not None


def record(job: Job) -> None:
    """Note a compilation for `record_kernels`."""
    assert _recorded is not None
    _recorded[job] = None


def precompile(
    jobs: Sequence[Job],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    set_up_thread: Callable[[], None] = lambda: None,
) -> None:
    """Compile what `record_kernels` found, in parallel.

    `progress(done, total)` is called after each file; `set_up_thread` in each thread before its
    first (a thread starts on CUDA device 0). Raises the first KernelError.
    """
    with ThreadPoolExecutor(initializer=set_up_thread) as pool:
        futures = [pool.submit(load_module, *job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def forget_modules() -> None:
    """Compile or load each file again at its next use."""
    _modules.clear()


def _loader_for(array_type: type) -> Loader:
    if array_type in _loaders:
        return _loaders[array_type]
    if array_type.__module__.partition(".")[0] == "cupy":
        return load_cupy_module
    raise KernelError(f"kernels do not run on arrays of type {array_type.__name__}.")
