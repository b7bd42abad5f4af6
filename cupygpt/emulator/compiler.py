"""g++ and binutils: which ones, with which flags, and what they say."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from cupygpt.emulator.faults import CompileError
from cupygpt.emulator.places import INCLUDE_DIR


class Mode(Enum):
    """How a kernel is compiled and watched. Each mode is slower than the one before it."""

    UNCHECKED = "unchecked"
    CHECKED = "checked"
    """Under the checker of accesses: about ten times slower."""
    COUNTED = "counted"
    """Checked, and what it asks of a GPU is counted: about two times slower again."""


COMMON_FLAGS = ("-std=c++20", "-fPIC", "-g1", "-w", "-U_FORTIFY_SOURCE")
# In their order: casts between pointer types work as with nvcc; `extern __shared__` needs no
# initialisation wrappers; libraries can be unloaded; reports see the line of the caller.
_KERNEL = (
    "-fno-strict-aliasing",
    "-fno-extern-tls-init",
    "-fno-gnu-unique",
    "-fno-optimize-sibling-calls",
)
# -fno-tree-sra: a 128-bit access stays one access, and its alignment is checked as a whole.
_CHECKED = (
    "-O1",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=bounds,alignment",
    "-fno-tree-sra",
)
_OF_MODE = {
    Mode.UNCHECKED: ("-O2",),
    Mode.CHECKED: _CHECKED,
    Mode.COUNTED: (*_CHECKED, "-fsanitize-coverage=trace-pc"),
}


def missing_toolchain() -> str | None:
    """Why kernels cannot be emulated on this machine, and what to do; None if they can."""
    if platform.system() != "Linux":
        return (
            "kernels are compiled for the CPU and run there on Linux only. Windows: use WSL. "
            "macOS: use a Linux container."
        )
    for tool in (compiler(), "readelf", "addr2line", "objdump"):
        if shutil.which(tool) is None:
            return (
                f"kernels are compiled for the CPU with g++ and binutils, and {tool} is not "
                "installed. Debian, Ubuntu: apt-get install g++. Fedora: dnf install gcc-c++."
            )
    return None


def compiler() -> str:
    """The C++ compiler: $CXX, else g++."""
    return os.environ.get("CXX", "g++")


@functools.cache
def _compiler_version(name: str) -> str:
    return run([name, "--version"])


def run(command: list[str]) -> str:
    """The output of a tool; CompileError with its message if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise CompileError(f"{command[0]} failed:\n{done.stderr.strip()}")
    return done.stdout


def digest(*parts: str) -> str:
    """A short name for these texts and the version of the compiler."""
    whole = "\0".join((*parts, _compiler_version(compiler())))
    return hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:20]


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Fused multiply-add, as on a GPU, where the CPU has it; a plain ABI for switching stacks."""
    if platform.machine() != "x86_64":
        return ()
    known = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].split("\n")[0].split())
    fused = ("-mavx2", "-mfma") if {"avx2", "fma"} <= known else ()
    return (*fused, "-fcf-protection=none")


def module_flags(options: Sequence[str], mode: Mode) -> list[str]:
    """The compiler's flags for a module; of `options`, for NVRTC, it takes -D, -U, -I and -arch."""
    kept = []
    given = list(options)
    for i, option in enumerate(given):
        if option in ("-I", "-D", "-U"):
            given[i + 1] = option + given[i + 1]
        elif option.startswith("-I"):
            kept.append(f"-I{Path(option[2:]).resolve()}")
        elif option.startswith(("-D", "-U")):
            kept.append(option)
        elif match := re.fullmatch(r"(?:-arch=|--gpu-architecture=)(?:sm|compute)_(\d+)a?", option):
            kept.append(f"-D__CUDA_ARCH__={match[1]}0")
    return [
        *COMMON_FLAGS,
        *_KERNEL,
        *machine_flags(),
        *_OF_MODE[mode],
        *kept,
        f"-I{INCLUDE_DIR}",
        f"-I{INCLUDE_DIR / 'unsupported'}",
    ]
