"""The accesses of a launch by line: what each one costs, and why it costs more than it must."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from cupygpt.emulator.counted import SECTOR_BYTES, AccessCounts, Counts
from cupygpt.kernels.launch import WARP
from cupygpt.performance.amounts import two_figures

WASTE = 1.5
"""From this multiple of the best on, a report says why."""

_BANKS_BYTES = 128
_VERBS = {"read": "reads", "write": "writes", "atomic": "updates"}


@dataclass(frozen=True)
class LineCost:
    """All accesses of one kind to one array in one line of the kernel's own file."""

    line: int
    """0 if it is not known."""
    space: str
    kind: str
    array: str
    bytes: int
    """Of one lane's access."""
    requests: int
    lanes: int
    moved: int
    """Sectors (global), or turns (shared)."""
    best: float
    """What `moved` would be without waste."""
    cycles: int
    """Of L1: lines (global), or turns of joined reads (shared)."""
    stride: int | None

    @property
    def per_request(self) -> float:
        """Sectors or turns of a request."""
        return self.moved / self.requests

    @property
    def at_best(self) -> float:
        """The same without waste."""
        return self.best / self.requests

    @property
    def lanes_per_request(self) -> float:
        """How many of the 32 lanes take part."""
        return self.lanes / self.requests

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "line": self.line or None,
            "space": self.space,
            "kind": self.kind,
            "array": self.array,
            "bytes_per_lane": self.bytes,
            "requests": self.requests,
            "lanes": self.lanes,
            "sectors" if self.space == "global" else "turns": self.moved,
            "at_best": round(self.best),
            "cycles": self.cycles,
            "stride": self.stride,
            "reason": reason(self),
        }


def costs_by_line(counts: Counts) -> list[LineCost]:
    """The accesses of a launch, those of one line and array together, the most costly first."""
    groups: dict[tuple[Any, ...], list[AccessCounts]] = defaultdict(list)
    for access in counts.accesses:
        place = access.place
        line = place.line if place and place.file == counts.source else 0
        groups[line, access.space, access.kind, access.array, access.bytes].append(access)
    costs = [_cost(line, group) for (line, *_), group in groups.items()]
    return sorted(costs, key=lambda cost: (-cost.cycles, cost.line))


def _cost(line: int, group: list[AccessCounts]) -> LineCost:
    first = group[0]
    is_global = first.space == "global"
    strides = {access.stride for access in group}
    return LineCost(
        line=line,
        space=first.space,
        kind=first.kind,
        array=first.array,
        bytes=first.bytes,
        requests=sum(a.requests for a in group),
        lanes=sum(a.lanes for a in group),
        moved=sum(a.sectors if is_global else a.turns for a in group),
        best=sum(a.at_best * a.requests for a in group),
        cycles=sum(a.cache_lines if is_global else a.joined_turns for a in group),
        stride=strides.pop() if len(strides) == 1 else None,
    )


def what_it_does(cost: LineCost) -> str:
    """Such as: reads inp."""
    if cost.kind == "async copy":
        return f"copies {cost.array}" if cost.space == "global" else f"fills {cost.array}"
    return f"{_VERBS[cost.kind]} {cost.array}"


def reason(cost: LineCost) -> str:
    """Why an access costs more than it must; empty if it does not."""
    is_dense = cost.stride is not None and abs(cost.stride) <= cost.bytes
    if cost.lanes_per_request <= WARP / WASTE and is_dense:
        on_average = "" if cost.lanes % cost.requests == 0 else " on average"
        return f"only {two_figures(cost.lanes_per_request)} of {WARP} lanes take part{on_average}"
    if cost.per_request < WASTE * cost.at_best:
        return ""
    if cost.space == "shared":
        return _reason_of_turns(cost)
    if cost.stride is None:
        return "the lanes ask for places that do not follow each other"
    apart = abs(cost.stride)
    if apart >= SECTOR_BYTES:
        return f"neighbouring lanes are {apart} bytes apart: each moves a sector of its own"
    if apart > cost.bytes:
        return f"neighbouring lanes are {apart} bytes apart, and each uses {cost.bytes} of them"
    return "a request does not begin at a multiple of 32 bytes"


def _reason_of_turns(cost: LineCost) -> str:
    if cost.kind == "atomic":
        return "lanes that update the same bank go one after another"
    meet = cost.per_request / cost.at_best
    if cost.stride is None:
        return f"{meet:.0f} lanes meet in a bank"
    apart = abs(cost.stride)
    if apart % _BANKS_BYTES == 0:
        return f"neighbouring lanes are {apart} bytes apart: all in one bank"
    return f"neighbouring lanes are {apart} bytes apart: {meet:.0f} of them meet in a bank"
