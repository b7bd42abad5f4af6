"""Compile the .cu files for arrays of CuPy: options, header search, errors with file and line."""

import hashlib
from pathlib import Path
from typing import Any

from cupygpt.errors import KernelError

BFLOAT16_HEADER = "cuda_bf16.h"


def compile_options(
    cuda_dir: Path, floatX: str, defines: dict[str, int], arch: str = ""
) -> tuple[str, ...]:
    """Options that every compiler of our kernels gets.

    CuPy adds the device's own architecture (sm_90); with two of the same generation NVRTC takes the
    one that can do more (sm_90a).

    The digest of the headers is one of them, because CuPy's disk cache sees only the .cu file.
    There is no --use_fast_math: float32 on the GPU agrees with the CPU; where an approximation is
    harmless, a kernel asks for it by name.
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

    Raises KernelError with the compiler's log, which names file and line.
    """
    import cupy
    from cupy.cuda.compiler import CompileException

    # The compiler sees a copy of the text: #line makes its messages name the file itself.
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
    """Folders of cuda_bf16.h: of the pip packages, of conda, or of a CUDA toolkit."""
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if folder is None:
        return []
    # CUDA 13 keeps the C++ core libraries, which newer headers may include, in a folder below.
    return [folder, *(str(p) for p in (Path(folder) / "cccl",) if p.is_dir())]


def _headers_digest(cuda_dir: Path) -> str:
    digest = hashlib.sha256()
    for header in sorted(cuda_dir.rglob("*.cuh")):
        digest.update(
            header.relative_to(cuda_dir).as_posix().encode() + b"\0" + header.read_bytes()
        )
    return digest.hexdigest()[:16]
