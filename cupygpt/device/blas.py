"""Which BLAS computes NumPy's matrix products: the last bits of a run on the CPU depend on it."""

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

_VARIABLES = ("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@cache
def blas_in_use() -> str:
    """Version, kernels and threads: "OpenBLAS 0.3.31, Haswell kernels, 1 thread".

    OpenBLAS chooses its kernels by the processor, or by OPENBLAS_CORETYPE. Of another BLAS only
    what its build and the environment say is known.
    """
    for path in _libraries():
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        config, core = (_text(library, f"get_{what}") for what in ("config", "corename"))
        if config and core:
            threads = _number(library, "get_num_threads")
            version = " ".join(config.split()[:2])
            return f"{version}, {core} kernels, {threads} thread{'' if threads == 1 else 's'}"
    return _as_built()


def _libraries() -> Iterator[Path]:
    """OpenBLAS as it came with NumPy, or as this process has loaded it from elsewhere."""
    numpy = Path(np.__file__).parent
    for folder in (numpy.parent / "numpy.libs", numpy / ".dylibs"):
        yield from sorted(folder.glob("*openblas*"))
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    loaded = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "openblas" in line}
    yield from map(Path, sorted(loaded))


def _function(library: ctypes.CDLL, name: str) -> "ctypes._NamedFuncPointer | None":
    """openblas_<name>, under the names that builds give it."""
    for prefix in ("scipy_openblas_", "openblas_"):
        for suffix in ("64_", "", "_64"):
            function = getattr(library, f"{prefix}{name}{suffix}", None)
            if function is not None:
                return function  # type: ignore[no-any-return]
    return None


def _text(library: ctypes.CDLL, name: str) -> str | None:
    function = _function(library, name)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    text: bytes | None = function()
    return text.decode("ascii", "replace") if text else None


def _number(library: ctypes.CDLL, name: str) -> int:
    function = _function(library, name)
    return int(function()) if function is not None else 1


def _as_built() -> str:
    try:
        built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        name = f"{built['name']} {built['version']}"
    except (TypeError, KeyError):  # before NumPy 1.26
        name = "unknown"
    settings = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    return ", ".join([name, *settings])
