"""Compiles the runtime and the kernels, and keeps the results in a cache folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupygpt.emulator.cache import cache_folder, write_whole
from cupygpt.emulator.compiler import (
    COMMON_FLAGS,
    Mode,
    compiler,
    digest,
    machine_flags,
    missing_toolchain,
    module_flags,
    run,
)
from cupygpt.emulator.faults import EmulatorError
from cupygpt.emulator.places import INCLUDE_DIR
from cupygpt.emulator.preprocessed import (
    DYNAMIC_SHARED,
    Entry,
    find_entries,
    reject_unsupported,
    source_files,
    uses_dynamic_shared,
)

RUNTIME_DIR = Path(__file__).parent / "runtime"
_SHIM = INCLUDE_DIR / "cuda_shim.h"
MAX_SHARED_BYTES = 227 << 10
"""Shared memory of one block of sm_90, static and dynamic together."""

_GAP_BYTES = 256
_COUNTING = ("counters", "iterations", "memory_system", "requests")
"""The files of the runtime that count."""


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
    options: tuple[str, ...]
    library: Path
    runtime: Path
    parameters: dict[str, tuple[str, ...]]
    """The names of the parameters of each kernel, in the file's order."""
    shared: tuple[SharedSymbol, ...]
    anchor_offset: int
    """Offset of the variable whose address emu_shared_anchor() returns."""


def compile_module(
    source: Path,
    options: Sequence[str],
    *,
    mode: Mode = Mode.CHECKED,
    portable_switch: bool = False,
) -> CompiledModule:
    """Compile a .cu file for the emulator, or find it in the cache.

    Args:
        source: the .cu file.
        options: as for NVRTC; -D, -U, -I and -arch are used, the others ignored.
        mode: how its kernels are watched while they run.
        portable_switch: switch between threads by ucontext even where there is a faster way.

    Raises:
        CompileError: g++'s message, or the construct that is not emulated.
        EmulatorError: there is no g++, or no folder to keep what it makes.
    """
    if reason := missing_toolchain():
        raise EmulatorError(reason)
    source = source.resolve()
    flags = module_flags(options, mode)
    runtime = _runtime_library(cache_folder(), portable_switch=portable_switch)
    key = digest(str(source), *flags, runtime.name, _include_digest())
    # The record tells which library was made last, and from which texts.
    record = cache_folder() / f"{source.stem}-{key}.json"
    facts = _unchanged(record)
    if facts is None:
        facts = _build(source, flags, key, runtime)
        write_whole(record, json.dumps(facts))
    symbols = [SharedSymbol(*row) for row in facts["shared"]]
    anchor = next(s for s in symbols if s.name == "emu_anchor")
    return CompiledModule(
        source,
        tuple(options),
        cache_folder() / facts["library"],
        runtime,
        {name: tuple(names) for name, names in facts["parameters"].items()},
        tuple(s for s in symbols if s is not anchor),
        anchor.offset,
    )


def precompile(
    modules: Iterable[tuple[Path, Sequence[str]]], *, mode: Mode = Mode.CHECKED
) -> list[CompiledModule]:
    """Compile several modules at a time, as many as there are cores. Raises as compile_module."""
    jobs = list(modules)
    if jobs:
        _runtime_library(cache_folder(), portable_switch=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_module(job[0], job[1], mode=mode), jobs))


def _unchanged(record: Path) -> dict[str, Any] | None:
    """What a record says, if the library is there and made from the texts of today."""
    try:
        facts: dict[str, Any] = json.loads(record.read_text())
        same = all(_text_digest(Path(name)) == was for name, was in facts["texts"].items())
    except (OSError, ValueError, KeyError):
        return None
    return facts if same and (record.parent / facts["library"]).exists() else None


def _text_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:20]


@functools.cache
def _include_digest() -> str:
    """Of the emulator's own headers."""
    headers = sorted(file for file in INCLUDE_DIR.rglob("*") if file.is_file())
    return digest(*(header.read_text() for header in headers))


@functools.cache
def _runtime_library(folder: Path, *, portable_switch: bool) -> Path:
    """The compiled runtime, in `folder`."""
    sources = sorted(RUNTIME_DIR.glob("*.cpp"))
    texts = [
        p.read_text() for p in sorted((*RUNTIME_DIR.iterdir(), INCLUDE_DIR / "emulator_abi.h"))
    ]
    flags = [*COMMON_FLAGS, *machine_flags(), "-O2", "-fno-semantic-interposition"]
    flags.append(f"-I{INCLUDE_DIR}")
    if portable_switch:
        flags.append("-DEMULATOR_UCONTEXT")
    library = folder / f"libemulator-{digest(*flags, *texts)}.so"
    if not library.exists():
        # As two units, side by side: in each the libraries of C++ are read once, and hot functions
        # can be inlined.
        counting = [source for source in sources if source.stem in _COUNTING]
        units = [counting, [source for source in sources if source not in counting]]
        with tempfile.TemporaryDirectory(dir=folder) as name, ThreadPoolExecutor() as pool:
            objects = [Path(name) / f"{number}.o" for number in range(len(units))]
            made = [
                pool.submit(_compile_unit, unit, object_file, flags)
                for unit, object_file in zip(units, objects, strict=True)
            ]
            for unit_made in made:
                unit_made.result()
            _link(list(map(str, objects)), library)
    return library


def _compile_unit(sources: Sequence[Path], made: Path, flags: Sequence[str]) -> None:
    unit = made.with_suffix(".cpp")
    unit.write_text("".join(f'#include "{source}"\n' for source in sources))
    run([compiler(), *flags, "-c", str(unit), "-o", str(made)])


def _link(arguments: list[str], library: Path) -> None:
    """Make a shared library under a temporary name, then move it to its place."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        made = Path(folder) / library.name
        run([compiler(), "-shared", *arguments, "-o", str(made)])
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
    return _preprocess(source.resolve(), module_flags(options, Mode.CHECKED))


def _preprocess(source: Path, flags: Sequence[str]) -> str:
    shim = ["-include", str(_SHIM)]
    return run([compiler(), *flags, *shim, "-E", "-x", "c++", str(source)])


def _precompiled_shim(flags: Sequence[str]) -> Path:
    """CUDA for g++ as a header that g++ has parsed already, which halves the time of a module.

    g++ takes the file `.gch` beside a header instead of it, if it was made with flags that fit.
    """
    # The other definitions are those of kernels, which the shim does not look at.
    common = [flag for flag in flags if not re.match("-[DUI](?!__CUDA_ARCH__)", flag)]
    common += ["-U_FORTIFY_SOURCE", f"-I{INCLUDE_DIR}"]
    texts = [header.read_text() for header in sorted(INCLUDE_DIR.glob("*.h"))]
    folder = cache_folder() / f"shim-{digest(*common, *texts)}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / "shim"
            made.mkdir()
            header = made / "shim.h"
            header.write_text(f'#include "{_SHIM}"\n')
            run([compiler(), *common, "-x", "c++-header", str(header), "-o", f"{header}.gch"])
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


def _build(source: Path, flags: list[str], key: str, runtime: Path) -> dict[str, Any]:
    """Preprocess, check, compile and link, if this library is not there yet; returns its facts."""
    text = _preprocess(source, flags)
    texts = {str(file): _text_digest(file) for file in source_files(source, text)}
    library = cache_folder() / f"{source.stem}-{digest(key, *texts, *texts.values())}.so"
    reject_unsupported(text)
    entries = find_entries(text)
    if not library.exists():
        _compile(source, flags, library, runtime, entries, dynamic=uses_dynamic_shared(text))
    return {
        "texts": texts,
        "library": library.name,
        "parameters": {entry.name: entry.parameters for entry in entries},
        "shared": _shared_symbols(library),
    }


def _compile(
    source: Path,
    flags: list[str],
    library: Path,
    runtime: Path,
    entries: list[Entry],
    *,
    dynamic: bool,
) -> None:
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = Path(name)
        unit = folder / source.name
        names = _entry_points((e.name, e.max_threads) for e in entries)
        text = source.read_text(encoding="utf-8", errors="surrogateescape")
        unit.write_text(f'# 1 "{source}"\n{text}{names}', "utf-8", "surrogateescape")
        assembly = folder / "module.s"
        shim = ["-include", str(_precompiled_shim(flags)), "-iquote", str(source.parent)]
        # Reports name the source: g++ notes the line above for some places, the file for others.
        shim.append(f"-ffile-prefix-map={folder}={source.parent}")
        run([compiler(), *flags, *shim, "-S", "-x", "c++", str(unit), "-o", str(assembly)])
        lines = assembly.read_text(encoding="utf-8", errors="surrogateescape")
        assembly.write_text(_with_gaps(lines), "utf-8", "surrogateescape")
        objects = [folder / "module.o"]
        run([compiler(), "-c", str(assembly), "-o", str(objects[0])])
        if dynamic:
            # In its own translation unit, because kernels declare it with any type.
            definition = folder / "dynamic.cpp"
            definition.write_text(
                f"alignas(1024) thread_local char {DYNAMIC_SHARED}[{MAX_SHARED_BYTES}];\n"
            )
            objects.append(folder / "dynamic.o")
            run([compiler(), *COMMON_FLAGS, "-c", str(definition), "-o", str(objects[1])])
        # Resolved now: otherwise a missing function would end the process at its first call. To the
        # module's own functions: a kernel may have the name of one of the C library.
        rules = ["-Wl,--no-undefined", "-Wl,-Bsymbolic"]
        rules += ["-Xlinker", "-rpath", "-Xlinker", str(runtime.parent)]
        _link([*map(str, objects), str(runtime), *rules], library)


def _shared_symbols(library: Path) -> list[tuple[int, int, str]]:
    """(offset, bytes, name) of every thread-local variable of a library."""
    found: dict[int, tuple[int, int, str]] = {}
    for row in run(["readelf", "-sW", "-C", str(library)]).splitlines():
        part = row.split(maxsplit=7)
        if len(part) == 8 and part[3] == "TLS" and part[6] != "UND":
            offset, size = int(part[1], 16), int(part[2], 0)
            found[offset] = (offset, size, part[7].rpartition("::")[2])
    return sorted(found.values())
