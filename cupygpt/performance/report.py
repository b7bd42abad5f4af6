"""The report of a launch: what it asks for by line, what limits it, about how long it takes.

`text` is for people, at most 80 columns wide; `as_dict` is for programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cupygpt.emulator.counted import SECTOR_BYTES, Counts, Totals
from cupygpt.kernels.ptxas_log import Usage
from cupygpt.performance.amounts import amount, bytes_words, percent, two_figures, words_of_time
from cupygpt.performance.costs import LineCost, costs_by_line, reason, what_it_does
from cupygpt.performance.estimate import Estimate, Work, blocks_at_once, estimate
from cupygpt.performance.gpus import DEFAULT_GPU, GPU
from cupygpt.performance.registers import usage_of
from cupygpt.performance.source_lines import SourceLines

WIDTH = 80
MOST_LINES = 4
"""Lines of the source that the text shows, the most costly ones; and one more for a waste."""

_ROWS = {
    "global loads": ("global", "read"),
    "global copies": ("global", "async copy"),
    "global stores": ("global", "write"),
    "global atomics": ("global", "atomic"),
    "shared loads": ("shared", "read"),
    "shared copies": ("shared", "async copy"),
    "shared stores": ("shared", "write"),
    "shared atomics": ("shared", "atomic"),
}
"""Of the first table; copies are cp.async."""


def text(
    counts: Counts,
    gpu: GPU = DEFAULT_GPU,
    *,
    title: str = "",
    under_way: int | None = None,
    with_registers: bool = True,
) -> str:
    """The report of a launch for a GPU.

    Args:
        counts: of the launch.
        gpu: for the estimate, the registers and the occupancy.
        title: what stands beside the kernel's name, such as its sizes and type.
        under_way: as for `estimate`.
        with_registers: ask NVIDIA's compiler, where it is installed. It takes a second for a small
            kernel and up to a minute for a large one; the answer is kept.
    """
    guess = estimate(counts, gpu, under_way)
    usage = _usage(counts, gpu) if with_registers else None
    rows = [
        *_head(counts, title),
        "",
        *_table(counts),
        "",
        *_lines(counts),
        "",
        *_estimate(counts, guess),
        *_registers(counts, gpu, usage),
    ]
    return "\n".join(row[:WIDTH].rstrip() for row in rows)


def _head(counts: Counts, title: str) -> list[str]:
    shared = counts.shared_bytes
    of_shared = f", {bytes_words(shared)} of shared memory each" if shared else ""
    blocks = f"{counts.blocks} block{'s' if counts.blocks > 1 else ''}"
    return [
        f"{counts.kernel}{title:>{max(1, WIDTH - len(counts.kernel))}}",
        f"{blocks} of {counts.threads} threads{of_shared}",
    ]


def _row(name: str, *cells: str) -> str:
    widths = (8, 12, 13, 8, 8)
    return f"{name:<16}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=False))


def _table(counts: Counts) -> list[str]:
    rows = [_row("", "requests", "asked for", "moved", "used", "lanes")]
    for name, (space, kind) in _ROWS.items():
        total = counts.total(space, kind)
        if not total.requests:
            continue
        if space == "global":
            moved_bytes = total.sectors * SECTOR_BYTES
            moved, used = bytes_words(moved_bytes), total.asked_bytes / moved_bytes
        else:
            moved, used = f"{amount(total.turns)} turns", total.parts / total.turns
        asked = bytes_words(total.asked_bytes)
        lanes = percent(total.busy_lanes)
        rows.append(
            _row(name, amount(total.requests), asked, moved, percent(min(1.0, used)), lanes)
        )
        if kind == "read" and total.joined_requests < total.requests and space == "shared":
            turns = f"{amount(total.joined_turns)} turns"
            joined = _row("  joined", amount(total.joined_requests), "", turns)
            rows.append(f"{joined}    if nvcc joins neighbours")
    read, written = (n * SECTOR_BYTES for n in (counts.read_sectors, counts.written_sectors))
    least = _row("least to move", "", "", bytes_words(read + written))
    rows.append(f"{least}    {bytes_words(read)} in, {bytes_words(written)} out")
    return rows + _other_rows(counts)


def _other_rows(counts: Counts) -> list[str]:
    rows = []
    if counts.flop:
        lanes = percent(counts.flop / counts.flop_slots)
        rows.append(_row("arithmetic", "", f"{amount(counts.flop)} flop", "", "", lanes))
    if special := sum(a.special for a in counts.arithmetic):
        rows.append(_row("exp, log, ...", amount(special)))
    if counts.tensor_flop:
        rows.append(_row("tensor cores", "", f"{amount(counts.tensor_flop)} flop"))
    meetings = [
        f"{amount(count)} {name}"
        for count, name in (
            (counts.barriers, "barriers"),
            (counts.operations("__syncwarp"), "__syncwarp"),
            (counts.shuffles, "shuffles"),
        )
        if count
    ]
    if meetings:
        rows.append(f"{'meetings':<16}{', '.join(meetings)}")
    return rows


def _lines(counts: Counts) -> list[str]:
    costs = costs_by_line(counts)
    if not costs:
        return ["it asks memory for nothing"]
    texts = SourceLines(counts.source)
    rows = [f"line  {counts.source.name:<34}{'what':<17}{'per request':<14}at best"]
    for cost in _chosen(costs):
        number = f"{cost.line:4d}" if cost.line else "   ?"
        unit, per = "sector" if cost.space == "global" else "turn", two_figures(cost.per_request)
        per = f"{per} {unit}{'' if per == '1' else 's'}"
        why = reason(cost)
        mark = " !" if why else ""
        rows.append(
            f"{number}  {texts.short(cost.line, 33):<34}{what_it_does(cost)[:16]:<17}"
            f"{per:<14}{two_figures(cost.at_best)}{mark}"
        )
        rows += [f"      ! {why}"] if why else []
    if counts.flop:
        most = max(counts.arithmetic, key=lambda line: line.flop)
        if most.place:
            share = percent(most.flop / counts.flop)
            rows.append(f"{most.place.line:4d}  {share} of the arithmetic")
    return rows


def _chosen(costs: Sequence[LineCost]) -> list[LineCost]:
    """The most costly line of each array, at most MOST_LINES.

    Where none of them wastes anything, the line that wastes most comes behind them.
    """
    chosen: dict[tuple[str, str], LineCost] = {}
    for cost in sorted(costs, key=lambda cost: -cost.cycles):
        chosen.setdefault((cost.space, cost.array), cost)
    shown = list(chosen.values())[:MOST_LINES]
    wasteful = [cost for cost in costs if reason(cost)]
    if wasteful and not any(map(reason, shown)):
        shown.append(max(wasteful, key=lambda cost: cost.moved - cost.best))
    return shown


def _estimate(counts: Counts, guess: Estimate) -> list[str]:
    rows = [
        f"estimate for {guess.gpu.article} {guess.gpu.name}: {words_of_time(guess.microseconds)}, "
        f"limited by {guess.limit}"
    ]
    terms = [f"{name} {two_figures(us)}" for name, us in guess.terms.items() if us >= 0.05]
    if terms:
        rows.append(f"  {', '.join(terms)} us")
    rows.append(
        f"  the grid would fill {percent(guess.held_threads)} of the GPU's threads; "
        f"the least to move takes {words_of_time(guess.bytes_alone)}"
    )
    if counts.operations("wgmma"):
        rows.append("  the products by wgmma, and what they read, are left out of all this")
    return rows


def _registers(counts: Counts, gpu: GPU, usage: Usage | None) -> list[str]:
    if usage is None:
        return []
    blocks = occupancy_blocks(counts, gpu, usage)
    spills = f"{usage.spill_bytes} bytes spilled" if usage.spill_bytes else "none spilled"
    share = percent(blocks * counts.threads / gpu.threads)
    return [
        f"  {usage.registers} registers a thread, {spills}; they leave room for {blocks} "
        f"block{'s' if blocks > 1 else ''}, {share}"
    ]


def occupancy_blocks(counts: Counts, gpu: GPU, usage: Usage) -> int:
    """How many blocks of the launch a multiprocessor holds."""
    return blocks_at_once(Work.of(counts, 1), gpu, usage.registers)


def _usage(counts: Counts, gpu: GPU) -> Usage | None:
    return usage_of(counts.source, counts.options, counts.kernel, gpu)


def as_dict(
    counts: Counts,
    gpu: GPU = DEFAULT_GPU,
    *,
    under_way: int | None = None,
    with_registers: bool = True,
) -> dict[str, Any]:
    """The same figures, and all lines, for JSON."""
    guess = estimate(counts, gpu, under_way)
    usage = _usage(counts, gpu) if with_registers else None
    return {
        "kernel": counts.kernel,
        "file": str(counts.source),
        "grid": counts.grid,
        "block": counts.block,
        "shared_bytes": counts.shared_bytes,
        "total": {
            **{
                name.replace(" ", "_"): _total(counts.total(space, kind))
                for name, (space, kind) in _ROWS.items()
                if counts.total(space, kind).requests
            },
            "least_bytes": {
                "read": counts.read_sectors * SECTOR_BYTES,
                "written": counts.written_sectors * SECTOR_BYTES,
            },
            "barriers": counts.barriers,
            "shuffles": counts.shuffles,
            "flop": counts.flop,
            "special": sum(line.special for line in counts.arithmetic),
            "tensor_flop": counts.tensor_flop,
        },
        "lines": [cost.as_dict() for cost in costs_by_line(counts)],
        "meetings": [
            {"line": m.place and m.place.line, "operation": m.operation, "count": m.count}
            for m in counts.meetings
        ],
        "arithmetic": [
            {"line": a.place and a.place.line, "flop": a.flop, "special": a.special}
            for a in counts.arithmetic
        ],
        "estimate": {
            "gpu": gpu.name,
            "microseconds": round(guess.microseconds, 2),
            "limit": guess.limit,
            "terms": {name: round(us, 3) for name, us in guess.terms.items()},
            "bytes_alone_microseconds": round(guess.bytes_alone, 2),
            "held_threads": round(guess.held_threads, 4),
            "products_by_wgmma_left_out": bool(counts.operations("wgmma")),
        },
        "registers": usage
        and {
            "per_thread": usage.registers,
            "spill_bytes": usage.spill_bytes,
            "blocks_per_multiprocessor": occupancy_blocks(counts, gpu, usage),
        },
    }


def _total(total: Totals) -> dict[str, Any]:
    return {**dataclasses.asdict(total), "busy_lanes": round(total.busy_lanes, 4)}
