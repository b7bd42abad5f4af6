"""Find the .cu files, compile each variant once and keep it; list the variants of a run.

From top to bottom: what a variant is, keeping it (`load_module`), listing what a run will launch
(`record_kernels`, `precompile`), and compiling for CuPy: options, the search for CUDA's headers,
errors with file and line.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cupygpt.device.cpu_threads import num_cores
from cupygpt.device.cuda_check import unusable_cupy_cache
from cupygpt.errors import DeviceError, KernelError

BFLOAT16_HEADER = "cuda_bf16.h"

FLOATX_TYPES = {np.dtype(np.float32): "float", np.dtype(np.uint16): "__nv_bfloat16"}
"""C++ type of floatX by the dtype of the arrays."""


class Module(Protocol):
    """A compiled .cu file."""

    def get_function(self, name: str) -> Any:
        """The kernel `name`, a Function."""


Loader = Callable[[Path, tuple[str, ...]], Module]
"""Compiles the .cu file at a path with compiler options."""


class Variant(NamedTuple):
    """A .cu file and what decides how it is compiled, except the current device's architecture."""

    array_type: type
    """Type of the arrays: it decides which loader compiles the file."""
    file: str
    floatX: str
    """C++ type of floatX."""
    constants: tuple[tuple[str, int], ...]
    """(NAME, VALUE) of each -DNAME=VALUE, sorted."""
    arch: str = ""
    """The architecture that the file needs (sm_90a); empty for that of the device."""


_here = threading.local()
"""`recorded` on a thread in `record_kernels`: the variants so far, each with the kernels launched
from it. Other threads launch meanwhile."""

_loaders: dict[type, Loader] = {}
_modules: dict[Variant, Module] = {}


def register_loader(array_type: type, loader: Loader) -> None:
    """Compile kernels for arrays of exactly `array_type` by `loader(path, options)`.

    A new type of array needs this, `register_matmul`, and NumPy's attributes dtype, shape, size,
    itemsize and flags.c_contiguous. If it has a `device`, ops choose their launches by it. For a
    whole example see tests/support/emulated_gpu.py.
    """
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
    """Call `dry_run`, and return what it would have launched.

    Kernels are only recorded; matrix products do run. Returns the variants in the order of their
    first launch, each with the names of the kernels launched from it. So the list of what a run
    must compile follows from the code that launches.
    """
    recorded: dict[Variant, set[str]] = {}
    _here.recorded = recorded
    try:
        dry_run()
    finally:
        _here.recorded = None
    return recorded


def is_recording() -> bool:
    """Whether `record_kernels` runs on this thread: then a launch is only recorded."""
    return getattr(_here, "recorded", None) is not None


def record(variant: Variant, kernel: str) -> None:
    """Record a launch for `record_kernels`."""
    _here.recorded.setdefault(variant, set()).add(kernel)


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
    with ThreadPoolExecutor(num_cores(), initializer=set_up_thread) as pool:
        futures = [pool.submit(load_module, variant) for variant in variants]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(variants))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def forget_modules() -> None:
    """Forget the compiled files: the next use compiles them, or reads them from the disk cache."""
    _modules.clear()


def _loader_for(array_type: type) -> Loader:
    if array_type in _loaders:
        return _loaders[array_type]
    if array_type.__module__.partition(".")[0] == "cupy":
        return load_cupy_module
    raise KernelError(f"kernels do not run on arrays of type {array_type.__name__}.")


def compile_options(
    cuda_dir: Path, floatX: str, defines: Mapping[str, int], arch: str = ""
) -> tuple[str, ...]:
    """The options for NVRTC, and for the emulator's g++ in tests.

    `arch` is an architecture that the file needs, such as sm_90a. CuPy adds that of the device,
    sm_90. NVRTC compiles for sm_90a if it gets both (tried with 12.9; test_nvrtc.py).

    The digest of the headers is an option because CuPy's disk cache looks only at the .cu file and
    the options. There is no --use_fast_math, so float32 on the GPU agrees with the CPU. Where an
    approximation is harmless, a kernel asks for it by name.
    """
    return (
        "-std=c++17",
        f"-I{cuda_dir}",
        f"-DfloatX={floatX}",
        f"-DHEADERS_DIGEST=0x{_headers_digest(cuda_dir)}ull",
        *(f"-D{name}={value}" for name, value in sorted(defines.items())),
        *((f"-arch={arch}",) if arch else ()),
    )


def load_cupy_module(path: Path, options: tuple[str, ...]) -> Any:
    """The RawModule of a .cu file for the current device, compiled or from CuPy's disk cache.

    Raises KernelError with the compiler's log, which names the file and the line, and DeviceError
    if CuPy cannot keep the compiled file.
    """
    import cupy
    from cupy.cuda.compiler import CompileException

    # The compiler gets the text, not the file: #line tells its messages the name of the file.
    source = f'#line 1 "{path.as_posix()}"\n{path.read_text(encoding="utf-8")}'
    includes = tuple(f"-I{folder}" for folder in _cuda_header_dirs())
    module = cupy.RawModule(code=source, options=(*options, *includes, "-lineinfo"))
    try:
        module.compile()
    except CompileException as error:
        raise KernelError(_log_message(path, error.get_message(), options)) from None
    except OSError as error:
        raise DeviceError(unusable_cupy_cache(error)) from error
    return module


def _log_message(path: Path, log: str, options: tuple[str, ...]) -> str:
    hint = ""
    if BFLOAT16_HEADER in log and "open source file" in log:
        hint = (
            "\nCUDA's headers were not found. Install them with `pip install 'cupygpt[cuda12]'` "
            "(or cuda13), or set CUDA_PATH to a CUDA toolkit."
        )
    return f"{path.name} does not compile ({' '.join(options)}):\n{log.strip()}{hint}"


def _cuda_header_dirs() -> list[str]:
    """The folders of cuda_bf16.h, from the pip packages, from conda or from a CUDA toolkit."""
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if folder is None:
        return []
    # In CUDA 13 some headers include the C++ core libraries, which lie in a folder below.
    core_libraries = Path(folder) / "cccl"
    return [folder, str(core_libraries)] if core_libraries.is_dir() else [folder]


def _headers_digest(cuda_dir: Path) -> str:
    digest = hashlib.sha256()
    for header in sorted(cuda_dir.rglob("*.cuh")):
        digest.update(
            header.relative_to(cuda_dir).as_posix().encode() + b"\0" + header.read_bytes()
        )
    return digest.hexdigest()[:16]
