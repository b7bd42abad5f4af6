"""From the counters of the runtime to `Counts`: addresses become lines, basic blocks arithmetic."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cupygpt.emulator.basic_blocks import code_of
from cupygpt.emulator.counted import (
    KINDS,
    SPACES,
    UNDER_WAY,
    AccessCounts,
    ArithmeticCounts,
    Counts,
    MeetingCounts,
)
from cupygpt.emulator.places import Place, frames_of, own_place
from cupygpt.emulator.preprocessed import DYNAMIC_SHARED
from cupygpt.emulator.toolchain import CompiledModule
from cupygpt.kernels.launch import WARP

# All of this mirrors runtime/counters.h.
_MOST_PLACES, _MOST_MEETINGS, _MOST_BLOCKS, _MOST_SHARED = 4096, 1024, 16384, 1024
_MIXED_STRIDE = -(2**63)
_NO_STRIDE = _MIXED_STRIDE + 1
_SUMS = (
    *("requests", "lanes", "sectors", "cache_lines", "turns", "parts"),
    *("joined_requests", "joined_turns"),
)


class _RawAccess(ctypes.Structure):
    _fields_ = [
        ("pc", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("space", ctypes.c_int32),
        ("bytes", ctypes.c_uint32),
        ("array", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in _SUMS),
        ("stride", ctypes.c_int64),
    ]


class _RawMeeting(ctypes.Structure):
    _fields_ = [
        ("pc", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("operation", ctypes.c_char * 32),
    ]


class _RawBlock(ctypes.Structure):
    _fields_ = [("pc", ctypes.c_uint64), ("lanes", ctypes.c_uint64), ("warps", ctypes.c_uint64)]


class RawCounters(ctypes.Structure):
    """Mirrors Counters of runtime/counters.h."""

    _fields_ = [
        *((f"num_{name}", ctypes.c_uint32) for name in ("places", "meetings", "blocks", "warps")),
        ("read_sectors", ctypes.c_uint64),
        ("written_sectors", ctypes.c_uint64),
        ("fetched_sectors", ctypes.c_uint64),
        ("rounds", ctypes.c_uint64 * len(UNDER_WAY)),
        ("shared_used", ctypes.c_uint8 * _MOST_SHARED),
        ("places", _RawAccess * _MOST_PLACES),
        ("meetings", _RawMeeting * _MOST_MEETINGS),
        ("blocks", _RawBlock * _MOST_BLOCKS),
    ]


class _RawBlockInLoop(ctypes.Structure):
    _fields_ = [
        ("pc", ctypes.c_uint64),
        ("innermost", ctypes.c_int32),
        ("begins", ctypes.c_int32),
    ]


class _RawLoop(ctypes.Structure):
    _fields_ = [("parent", ctypes.c_int32), ("depth", ctypes.c_int32)]


class CountingRequest(ctypes.Structure):
    """Mirrors CountingRequest of runtime/counters.h."""

    _fields_ = [
        ("result", ctypes.c_void_p),
        ("blocks", ctypes.POINTER(_RawBlockInLoop)),
        ("num_blocks", ctypes.c_uint64),
        ("loops", ctypes.POINTER(_RawLoop)),
    ]


def counting_request(raw: RawCounters, library: Path) -> CountingRequest:
    """Asks a launch of a kernel in this library to count into `raw`."""
    code = code_of(library)
    blocks = (_RawBlockInLoop * len(code.blocks))(
        *(_RawBlockInLoop(pc, block.innermost, block.begins) for pc, block in code.blocks.items())
    )
    loops = (_RawLoop * len(code.parents))(
        *(_RawLoop(parent, code.depth(number)) for number, parent in enumerate(code.parents))
    )
    return CountingRequest(ctypes.addressof(raw), blocks, len(blocks), loops)


def counts_from(
    raw: RawCounters,
    module: CompiledModule,
    kernel: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arrays: Sequence[str],
    dynamic_bytes: int,
) -> Counts:
    """The counts of a launch of `kernel`, whose array arguments have the names `arrays`."""
    lines = _Lines(module, raw)
    shared = [symbol.name for symbol in module.shared]
    used = [s for s, used in zip(module.shared, raw.shared_used, strict=False) if used]
    accesses = [
        _access(access, lines, arrays if SPACES[access.space] == "global" else shared)
        for access in raw.places[: raw.num_places]
    ]
    meetings = [
        MeetingCounts(lines[m.pc], m.operation.decode(), m.count)
        for m in raw.meetings[: raw.num_meetings]
    ]
    return Counts(
        kernel=kernel,
        source=module.source,
        options=module.options,
        grid=grid,
        block=block,
        shared_bytes=sum(s.num_bytes for s in used if s.name != DYNAMIC_SHARED) + dynamic_bytes,
        warps=raw.num_warps,
        accesses=tuple(accesses),
        meetings=tuple(meetings),
        arithmetic=lines.arithmetic(),
        read_sectors=raw.read_sectors,
        written_sectors=raw.written_sectors,
        fetched_sectors=raw.fetched_sectors,
        rounds=dict(zip(UNDER_WAY, raw.rounds, strict=True)),
    )


def _access(raw: _RawAccess, lines: _Lines, arrays: Sequence[str]) -> AccessCounts:
    return AccessCounts(
        place=lines[raw.pc],
        space=SPACES[raw.space],
        kind=KINDS[raw.kind],
        array=arrays[raw.array],
        bytes=raw.bytes,
        stride=None if raw.stride in (_MIXED_STRIDE, _NO_STRIDE) else raw.stride,
        **{name: getattr(raw, name) for name in _SUMS},
    )


class _Lines:
    """The lines of all addresses that a launch has counted something at."""

    def __init__(self, module: CompiledModule, raw: RawCounters) -> None:
        known = code_of(module.library).blocks
        self._blocks = [
            (block, known[block.pc]) for block in raw.blocks[: raw.num_blocks] if block.pc in known
        ]
        offsets = {p.pc for p in raw.places[: raw.num_places]}
        offsets |= {m.pc for m in raw.meetings[: raw.num_meetings]}
        for _, here in self._blocks:
            offsets |= {offset for offset, _ in here.flop} | set(here.special)
        self._source = module.source
        self._frames = frames_of(offsets, module.library)

    def __getitem__(self, offset: int) -> Place | None:
        return own_place(self._frames[offset], self._source)

    def arithmetic(self) -> tuple[ArithmeticCounts, ...]:
        """The arithmetic of each line of the kernel's own file."""
        sums: dict[tuple[Path, int] | None, list[int]] = defaultdict(lambda: [0] * 4)
        for block, here in self._blocks:
            slots = WARP * block.warps
            for offset, operations in here.flop:
                line = sums[self._own_line(offset)]
                line[0] += operations * block.lanes
                line[1] += operations * slots
            for offset in here.special:
                line = sums[self._own_line(offset)]
                line[2] += block.lanes
                line[3] += slots
        return tuple(
            ArithmeticCounts(None if line is None else Place(*line), *numbers)
            for line, numbers in sums.items()
        )

    def _own_line(self, offset: int) -> tuple[Path, int] | None:
        place = self[offset]
        return None if place is None else (place.file, place.line)
