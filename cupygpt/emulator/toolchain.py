"""Compiles the runtime and the kernels with g++, and keeps the results in a cache folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cupygpt.emulator.cache import cache_folder
from cupygpt.emulator.faults import INCLUDE_DIR, CompileError, EmulatorError
from cupygpt.emulator.preprocessed import (
    DYNAMIC_SHARED,
    Entry,
    find_entries,
    reject_unsupported,
    uses_dynamic_shared,
)

RUNTIME_DIR = Path(__file__).parent / "runtime"
_SHIM = INCLUDE_DIR / "cuda_shim.h"
MAX_SHARED_BYTES = 227 << 10
"""Shared memory of one block of sm_90, static and dynamic together."""

_GAP_BYTES = 256

_COMMON = ["-std=c++20", "-fPIC", "-g1", "-w", "-U_FORTIFY_SOURCE"]
# In their order: casts between pointer types work as with nvcc; `extern __shared__` needs no
# initialisation wrappers; libraries can be unloaded; reports see the line of the caller.
_KERNEL = [
    "-fno-strict-aliasing",
    "-fno-extern-tls-init",
    "-fno-gnu-unique",
    "-fno-optimize-sibling-calls",
]
_CHECKED = [
    "-O1",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=bounds,alignment",
]
_UNCHECKED = ["-O2"]


def missing_toolchain() -> str | None:
    """Why kernels cannot be emulated on this machine, and what to do; None if they can."""
    if platform.system() != "Linux":
        return (
            "kernels are compiled for the CPU and run there on Linux only. Windows: use WSL. "
            "macOS: use a Linux container."
        )
    for tool in (_compiler(), "readelf", "addr2line", "objdump"):
        if shutil.which(tool) is None:
            return (
                f"kernels are compiled for the CPU with g++ and binutils, and {tool} is not "
                "installed. Debian, Ubuntu: apt-get install g++. Fedora: dnf install gcc-c++."
            )
    return None


@dataclass(frozen=True)
class SharedSymbol:
    """One __shared__ variable: where it lies in its module's block of shared memory."""

    offset: int
    num_bytes: int
    name: str


@dataclass(frozen=True)
class CompiledModule:
    """A shared library made from one .cu file."""

    source: Path
    library: Path
    runtime: Path
    parameters: dict[str, tuple[str, ...]]
    """The names of the parameters of each kernel, in the file's order."""
    shared: tuple[SharedSymbol, ...]
    anchor_offset: int
    """Offset of the variable whose address emu_shared_anchor() returns."""


def compile_module(
    source: Path, options: Sequence[str], *, checked: bool = True, portable_switch: bool = False
) -> CompiledModule:
    """Compile a .cu file for the emulator, or find it in the cache.

    Args:
        source: the .cu file.
        options: as for NVRTC; -D, -U, -I and -arch are used, the others ignored.
        checked: with the checker of accesses, about ten times slower.
        portable_switch: switch between threads by ucontext even where there is a faster way.

    Raises:
        CompileError: g++'s message, or the construct that is not emulated.
        EmulatorError: there is no g++, or no folder to keep what it makes.
    """
    if reason := missing_toolchain():
        raise EmulatorError(reason)
    source = source.resolve()
    flags = _flags(source, options, checked=checked)
    runtime = _runtime_library(portable_switch=portable_switch)
    key = _digest(str(source), *flags, runtime.name, *_texts(source, flags))
    library = cache_folder() / f"{source.stem}-{key}.so"
    record = library.with_suffix(".json")
    if not record.exists():
        entries = _build(source, flags, library, runtime)
        parameters = {entry.name: entry.parameters for entry in entries}
        facts = {"parameters": parameters, "shared": _shared_symbols(library)}
        _write(record, json.dumps(facts))
    facts = json.loads(record.read_text())
    symbols = [SharedSymbol(*row) for row in facts["shared"]]
    anchor = next(s for s in symbols if s.name == "emu_anchor")
    return CompiledModule(
        source,
        library,
        runtime,
        {name: tuple(names) for name, names in facts["parameters"].items()},
        tuple(s for s in symbols if s is not anchor),
        anchor.offset,
    )


def precompile(
    modules: Iterable[tuple[Path, Sequence[str]]], *, checked: bool = True
) -> list[CompiledModule]:
    """Compile several modules at a time, as many as there are cores. Raises as compile_module."""
    jobs = list(modules)
    _runtime_library(portable_switch=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_module(job[0], job[1], checked=checked), jobs))


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


@functools.cache
def _compiler_version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{command[0]} failed:\n{done.stderr.strip()}")
    return done.stdout


def _digest(*parts: str) -> str:
    whole = "\0".join((*parts, _compiler_version(_compiler())))
    return hashlib.sha256(whole.encode()).hexdigest()[:20]


def _texts(source: Path, flags: Sequence[str]) -> list[str]:
    """The text of every file that may be compiled into a module."""
    folders = [source.parent, *(Path(f[2:]) for f in flags if f.startswith("-I"))]
    headers = {h for d in folders for end in ("*.cuh", "*.h", "*.inc") for h in d.rglob(end)}
    headers |= {h for h in INCLUDE_DIR.rglob("*") if h.is_file()}
    return [source.read_text(), *(h.read_text() for h in sorted(headers))]


def _write(path: Path, text: str) -> None:
    """Write so that another process sees all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    """Fused multiply-add, as on a GPU, where the CPU has it; a plain ABI for switching stacks."""
    if platform.machine() != "x86_64":
        return ()
    known = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].split("\n")[0].split())
    fused = ("-mavx2", "-mfma") if {"avx2", "fma"} <= known else ()
    return (*fused, "-fcf-protection=none")


def _flags(source: Path, options: Sequence[str], *, checked: bool) -> list[str]:
    """The compiler's flags for a module."""
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
        *_COMMON,
        *_KERNEL,
        *_machine_flags(),
        *(_CHECKED if checked else _UNCHECKED),
        *kept,
        f"-I{INCLUDE_DIR}",
        f"-I{INCLUDE_DIR / 'unsupported'}",
    ]


def _runtime_library(*, portable_switch: bool) -> Path:
    sources = sorted(RUNTIME_DIR.glob("*.cpp"))
    texts = [
        p.read_text() for p in sorted((*RUNTIME_DIR.iterdir(), INCLUDE_DIR / "emulator_abi.h"))
    ]
    # As one unit: the libraries of C++ are read once, and the hot functions can be inlined.
    flags = [*_COMMON, *_machine_flags(), "-O2", "-fno-semantic-interposition", f"-I{INCLUDE_DIR}"]
    if portable_switch:
        flags.append("-DEMULATOR_UCONTEXT")
    library = cache_folder() / f"libemulator-{_digest(*flags, *texts)}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            unit = Path(folder) / "runtime.cpp"
            unit.write_text("".join(f'#include "{source}"\n' for source in sources))
            _link([*flags, str(unit)], library)
    return library


def _link(arguments: list[str], library: Path) -> None:
    """Make a shared library under a temporary name, then move it to its place."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        made = Path(folder) / library.name
        _run([_compiler(), "-shared", *arguments, "-o", str(made)])
        made.replace(library)


def _entry_points(names: Iterable[tuple[str, str]]) -> str:
    """C++ that makes kernels callable through an array of argument pointers."""
    text = ['\n# 1 "emulator_entry_points"\n']
    text.append("static thread_local char emu_anchor;\n")
    text.append('extern "C" EMU void* emu_shared_anchor() { return &emu_anchor; }\n')
    for name, bounds in names:
        text.append(
            f'extern "C" EMU void emu_call_{name}(void** a) {{ emu::call(&{name}, a); }}\n'
            f'extern "C" EMU const char* emu_signature_{name}() '
            f"{{ return emu::describe(&{name}); }}\n"
            f'extern "C" EMU int emu_bounds_{name}() {{ return {bounds}; }}\n'
        )
    return "".join(text).replace("EMU ", '__attribute__((no_sanitize("thread"))) ')


def preprocess(source: Path, options: Sequence[str]) -> str:
    """The text that is compiled for a module: g++ -E output. Raises CompileError."""
    return _preprocess(source.resolve(), _flags(source, options, checked=True))


def _preprocess(source: Path, flags: Sequence[str]) -> str:
    shim = ["-include", str(_SHIM)]
    return _run([_compiler(), *flags, *shim, "-E", "-x", "c++", str(source)])


def _precompiled_shim(flags: Sequence[str]) -> Path:
    """CUDA for g++ as a header that g++ has parsed already, which halves the time of a module.

    g++ takes the file `.gch` beside a header instead of it, if it was made with flags that fit.
    """
    # The other definitions are those of kernels, which the shim does not look at.
    common = [flag for flag in flags if not re.match("-[DUI](?!__CUDA_ARCH__)", flag)]
    common += ["-U_FORTIFY_SOURCE", f"-I{INCLUDE_DIR}"]
    texts = [header.read_text() for header in sorted(INCLUDE_DIR.glob("*.h"))]
    folder = cache_folder() / f"shim-{_digest(*common, *texts)}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / "shim"
            made.mkdir()
            header = made / "shim.h"
            header.write_text(f'#include "{_SHIM}"\n')
            _run([_compiler(), *common, "-x", "c++-header", str(header), "-o", f"{header}.gch"])
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(folder)
    return folder / "shim.h"


def _with_gaps(assembly: str) -> str:
    """Leave gaps between shared arrays, so that an overrun does not land in the next one."""
    thread_local = False
    rows = []
    for row in assembly.splitlines():
        if row.lstrip().startswith((".section", ".text", ".data", ".bss")):
            thread_local = ".tbss" in row
        rows.append(row)
        if thread_local and row.lstrip().startswith(".zero"):
            rows.append(f"\t.zero\t{_GAP_BYTES}")
    return "\n".join(rows) + "\n"


def _build(source: Path, flags: list[str], library: Path, runtime: Path) -> list[Entry]:
    """Preprocess, check, compile and link; returns the kernels."""
    text = _preprocess(source, flags)
    reject_unsupported(text)
    entries = find_entries(text)
    dynamic = uses_dynamic_shared(text)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = Path(name)
        unit = folder / source.name
        names = _entry_points((e.name, e.max_threads) for e in entries)
        unit.write_text(f'# 1 "{source}"\n{source.read_text()}{names}')
        assembly = folder / "module.s"
        shim = ["-include", str(_precompiled_shim(flags)), "-iquote", str(source.parent)]
        # Reports name the source: g++ notes the line above for some places, the file for others.
        shim.append(f"-ffile-prefix-map={folder}={source.parent}")
        _run([_compiler(), *flags, *shim, "-S", "-x", "c++", str(unit), "-o", str(assembly)])
        assembly.write_text(_with_gaps(assembly.read_text()))
        objects = [folder / "module.o"]
        _run([_compiler(), "-c", str(assembly), "-o", str(objects[0])])
        if dynamic:
            # In its own translation unit, because kernels declare it with any type.
            definition = folder / "dynamic.cpp"
            definition.write_text(
                f"alignas(1024) thread_local char {DYNAMIC_SHARED}[{MAX_SHARED_BYTES}];\n"
            )
            objects.append(folder / "dynamic.o")
            _run([_compiler(), *_COMMON, "-c", str(definition), "-o", str(objects[1])])
        # Resolved now: otherwise a missing function would end the process at its first call. To the
        # module's own functions: a kernel may have the name of one of the C library.
        rules = ["-Wl,--no-undefined", "-Wl,-Bsymbolic", f"-Wl,-rpath,{runtime.parent}"]
        _link([*map(str, objects), str(runtime), *rules], library)
    return entries


def _shared_symbols(library: Path) -> list[tuple[int, int, str]]:
    """(offset, bytes, name) of every thread-local variable of a library."""
    found: dict[int, tuple[int, int, str]] = {}
    for row in _run(["readelf", "-sW", "-C", str(library)]).splitlines():
        part = row.split(maxsplit=7)
        if len(part) == 8 and part[3] == "TLS" and part[6] != "UND":
            offset, size = int(part[1], 16), int(part[2], 0)
            found[offset] = (offset, size, part[7].rpartition("::")[2])
    return sorted(found.values())
