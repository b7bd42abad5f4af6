"""Compile .cu files for CuPy: options, the search for CUDA's headers, errors with file and line."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cupygpt.errors import KernelError

BFLOAT16_HEADER = "cuda_bf16.h"


def compile_options(
    cuda_dir: Path, floatX: str, defines: Mapping[str, int], arch: str = ""
) -> tuple[str, ...]:
    """The options that every compiler of our kernels gets.

    CuPy adds the architecture of the device (sm_90). Given sm_90a as well, NVRTC compiles for the
    more capable one.

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

    Raises KernelError with the compiler's log, which names the file and the line.
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
