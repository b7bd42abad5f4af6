"""Reads a preprocessed .cu file: its kernels, and what the emulator does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cupygpt.emulator.faults import CompileError
from cupygpt.emulator.places import INCLUDE_DIR

DYNAMIC_SHARED = "smem"
"""The one name for dynamic shared memory: `extern __shared__ float smem[];`."""

_UNSUPPORTED = {
    r"\b(?:asm|__asm|__asm__)\b": "inline PTX outside cuda/lib/ptx.cuh: put it there, in a wrapper "
    "that takes generic pointers, and its host version into ptx_emulated.h",
    r"<<<": "a launch from a kernel (dynamic parallelism)",
    r"\b__managed__\b": "__managed__ memory",
    r"\b(?:tex[123]D\w*|surf[123]D\w*|cudaTextureObject_t|cudaSurfaceObject_t)\b": "textures",
    r"\b(?:cooperative_groups|this_grid|grid_group)\b": "cooperative_groups (grid-wide sync)",
    r"\b(?:nvcuda|wmma)\b": "wmma: use the mma wrappers of cuda/lib/ptx.cuh",
    r"\b__cluster_dims__\b": "thread block clusters",
    r"\b__cvta_generic_to_shared\b": "shared-memory addresses outside cuda/lib/ptx.cuh",
    r"\b__syncthreads_(?:count|and|or)\b": "__syncthreads with a vote",
    r"\b__activemask\b": "__activemask: only full-warp operations are emulated",
    r"\b__match_(?:any|all)_sync\b": "__match_sync",
    r"\b__nanosleep\b": "spinning with __nanosleep",
    r"\b__h(?:add|sub|mul|fma|max|min|div|neg|exp|log|tanh)2?(?:_\w+)?\s*\(": "arithmetic on half "
    "or bfloat16: convert to float",
}
_MASK_LITERAL = re.compile(
    r"\b(__\w+_sync|__syncwarp)\s*\(\s*(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\s*[,)]"
)
_LINE_MARKER = re.compile(r'^# (\d+) "([^"\n]*)"((?: \d)*)', re.MULTILINE)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_BOUNDS = r'(?:__attribute__\(\(emulated_bounds\("(?P<{}>[^"]*)"\)\)\)\s*)?'
_KERNEL = re.compile(
    r"emulated_kernel\)\)\s*"
    + _BOUNDS.format("before")
    + r"void\s+"
    + _BOUNDS.format("after")
    + r"(?P<name>\w+)\s*\("
)
_DYNAMIC = re.compile(r"\bextern\s+__constinit\s+thread_local\b[^;]*?(\w+)\s*\[\s*\]\s*;")


@dataclass(frozen=True)
class Entry:
    """One kernel."""

    name: str
    max_threads: str
    """The expression in its __launch_bounds__, or "1024"."""
    parameters: tuple[str, ...]
    """The names of its parameters."""


def user_lines(text: str) -> Iterator[tuple[str, int, str]]:
    """The lines of g++ -E output that come from the kernel's own files: (file, line, text).

    The headers of the system and of the emulator are left out, and so is cuda/lib/ptx.cuh, which
    the emulator replaces.
    """
    file, line, ours = "", 0, False
    for row in text.splitlines():
        marker = _LINE_MARKER.match(row)
        if marker:
            line, file = int(marker[1]), marker[2]
            system = "3" in marker[3].split()
            path = Path(file)
            ours = path.is_absolute() and not system and INCLUDE_DIR not in path.parents
            continue
        if ours:
            yield file, line, row
        line += 1


def source_files(source: Path, text: str) -> list[Path]:
    """The kernel's own file and headers, of which g++ -E made `text`."""
    names = {match[2] for match in _LINE_MARKER.finditer(text) if "3" not in match[3].split()}
    files = {Path(name) for name in names if name.startswith("/")}
    files = {file for file in files if INCLUDE_DIR not in file.parents and file.is_file()}
    return sorted({source, *files})


def find_entries(text: str) -> list[Entry]:
    """The kernels in g++ -E output, in order; CompileError for one that is not extern "C"."""
    body = "\n".join(row for _, _, row in user_lines(text))
    entries = []
    for match in _KERNEL.finditer(body):
        before = body[: match.start()].rpartition("__attribute__")[0]
        if not before.rstrip().endswith('extern "C"'):
            raise CompileError(f'kernel {match["name"]}: entry points must be extern "C"')
        bounds = (match["before"] or match["after"] or "1024").split(",")[0]
        entries.append(Entry(match["name"], bounds, _parameters(body, match.end())))
    return entries


def _parameters(text: str, start: int) -> tuple[str, ...]:
    """The names in a list of parameters, whose first character stands at `start`."""
    parts, depth = [""], 0
    for letter in text[start:]:
        depth += (letter in "([{<") - (letter in ")]}>")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = [re.search(r"(\w+)[\s\])[]*$", part) for part in parts if part.strip()]
    return tuple(name[1] if name else f"argument {i}" for i, name in enumerate(found))


def uses_dynamic_shared(text: str) -> bool:
    """Whether the kernels declare dynamic shared memory.

    Raises CompileError for a name other than smem.
    """
    names = set(_DYNAMIC.findall("\n".join(row for _, _, row in user_lines(text))))
    if names - {DYNAMIC_SHARED}:
        raise CompileError(
            f"extern __shared__ {', '.join(sorted(names - {DYNAMIC_SHARED}))}[]: the emulator "
            f"knows dynamic shared memory by one name, {DYNAMIC_SHARED}"
        )
    return bool(names)


def reject_unsupported(text: str) -> None:
    """Raise CompileError for the first construct that the emulator does not have, with its line."""
    patterns = [(re.compile(pattern), reason) for pattern, reason in _UNSUPPORTED.items()]
    for file, line, row in user_lines(text):
        code = _STRING.sub('""', row)
        for pattern, reason in patterns:
            found = pattern.search(code)
            if found:
                raise CompileError(f"{file}:{line}: not emulated: {found[0].strip()}: {reason}")
        for name, mask in _MASK_LITERAL.findall(code):
            if int(mask, 0) != 0xFFFFFFFF:
                raise CompileError(
                    f"{file}:{line}: not emulated: {name} with mask {mask}: only the full warp "
                    "(0xffffffff) is"
                )
