"""What a kernel did wrong, as a Python exception."""

from __future__ import annotations

import ctypes
from pathlib import Path

from cupygpt.emulator.places import Place, frames_of, own_place
from cupygpt.errors import KernelError


class EmulatorError(KernelError):
    """A kernel does not compile for the emulated device, or went wrong on it."""


class CompileError(EmulatorError):
    """g++ rejected a kernel, or the kernel uses something that is not emulated."""


class KernelFault(EmulatorError):
    """A kernel went wrong while it ran.

    Attributes:
        kind: one of race, out_of_bounds, misaligned, uninitialised, divergent_barrier,
            divergent_warp, early_exit, deadlock, async_copy, trap, unsupported, warp, timeout
            or crash.
        kernel: name of the entry point.
        where: line of the .cu file that holds the access or barrier that was caught, or that calls
            the header where it stands; None if unknown.
        other: the line that it conflicts with: the earlier access of a race, the other barrier.
        block: (x, y, z) of the block; None if no thread was running.
        thread: (x, y, z) of the thread in its block; None if no thread was running.
        detail: the message of the runtime.
    """

    exit_code = 1

    def __init__(
        self,
        kind: str,
        kernel: str,
        detail: str,
        where: Place | None,
        other: Place | None,
        block: tuple[int, int, int] | None,
        thread: tuple[int, int, int] | None,
    ) -> None:
        self.kind, self.kernel, self.detail = kind, kernel, detail
        self.where, self.other = where, other
        self.block, self.thread = block, thread
        lines = [f"{kind} in kernel {kernel} at {where or 'an unknown line'}: {detail}"]
        if where is not None:
            lines += where.surroundings("    ")
        if other is not None:
            lines += [f"    conflicts with {other}", *other.surroundings("        ")]
        if block is not None:
            lines.append(f"    block {block}, thread {thread}")
        super().__init__("\n".join(lines))

    @property
    def lines(self) -> set[int]:
        """All source lines that the report names."""
        places = [p for p in (self.where, self.other) if p is not None]
        return {q.line for p in places for q in (p, *p.inside, *p.callers)}


class _RawPlace(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char * 256),
        ("line", ctypes.c_int32),
        ("pad", ctypes.c_uint32),
        ("pc", ctypes.c_uint64),
    ]


class RawReport(ctypes.Structure):
    """Mirrors Report of runtime/report.h."""

    _fields_ = [
        ("kind", ctypes.c_char * 32),
        ("message", ctypes.c_char * 512),
        ("where", _RawPlace),
        ("other", _RawPlace),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("in_thread", ctypes.c_int32),
    ]


def _resolve(raw: _RawPlace, library: Path, source: Path) -> Place | None:
    """The place in the author's own file; frames inside the emulator's headers are left out."""
    frames = frames_of([raw.pc], library)[raw.pc] if raw.pc else []
    if raw.file:
        innermost = Place(Path(raw.file.decode(errors="replace")), raw.line)
        if innermost not in frames:
            frames.insert(0, innermost)
    return own_place(frames, source)


def fault_from(raw: RawReport, kernel: str, library: Path, source: Path) -> KernelFault:
    """The exception for a report that the runtime has written about a kernel of `source`."""
    block = (raw.block[0], raw.block[1], raw.block[2])
    thread = (raw.thread[0], raw.thread[1], raw.thread[2])
    return KernelFault(
        raw.kind.decode(),
        kernel,
        raw.message.decode(errors="replace"),
        _resolve(raw.where, library, source),
        _resolve(raw.other, library, source),
        block if raw.in_thread else None,
        thread if raw.in_thread else None,
    )
