"""Counts of a large launch from a few small ones.

What a kernel asks for is a polynomial in each size, as long as the sizes fill whole blocks and
tiles: of degree 1 in the number of rows, of degree 2 in the length of attention. So it is counted
at two or three small values of each size, and the polynomial through them is taken at the large
one. The result is exact where that holds, and costs seconds instead of hours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from math import prod
from typing import Any

from cupygpt.emulator.counted import Counts
from cupygpt.lab.contracts.contract import Axis


def large_counts(
    count: Callable[[Mapping[str, int]], list[Counts]],
    axes: Sequence[Axis],
    large: Mapping[str, int],
) -> list[Counts]:
    """The counts of each kernel at the sizes `large`.

    `count(sizes)` counts at small sizes; those that no axis names keep their large value.
    """
    names = [next(iter(axis)) for axis in axes]
    values = [axis[name] for axis, name in zip(axes, names, strict=True)]
    basis = [_lagrange(points, large[name]) for points, name in zip(values, names, strict=True)]
    weights, found = [], []
    for index in product(*(range(len(points)) for points in values)):
        small = {
            n: sizes[i] for axis, i in zip(axes, index, strict=True) for n, sizes in axis.items()
        }
        found.append(count({**large, **small}))
        weights.append(prod(column[i] for column, i in zip(basis, index, strict=True)))
    return [_combined(list(kernel), weights) for kernel in zip(*found, strict=True)]


def _lagrange(points: Sequence[int], x: int) -> list[float]:
    """The weight of the value at each point in the polynomial through all of them, taken at x."""
    return [prod((x - q) / (p - q) for q in points if q != p) for p in points]


def _combined(samples: list[Counts], weights: Sequence[float]) -> Counts:
    last = samples[-1]
    blocks = _sum([counts.blocks for counts in samples], weights)
    return replace(
        last,
        grid=(blocks, 1, 1),
        warps=_sum([counts.warps for counts in samples], weights),
        accesses=_lines(
            [c.accesses for c in samples], weights, ("place", "space", "kind", "array")
        ),
        meetings=_lines([c.meetings for c in samples], weights, ("place", "operation")),
        arithmetic=_lines([c.arithmetic for c in samples], weights, ("place",)),
        read_sectors=_sum([c.read_sectors for c in samples], weights),
        written_sectors=_sum([c.written_sectors for c in samples], weights),
        fetched_sectors=_sum([c.fetched_sectors for c in samples], weights),
        rounds={
            loads: _sum([c.rounds.get(loads, 0) for c in samples], weights) for loads in last.rounds
        },
    )


def _lines(
    samples: Sequence[Sequence[Any]], weights: Sequence[float], key: Sequence[str]
) -> tuple[Any, ...]:
    """The entries of the last sample, each with its whole numbers as the polynomials give them."""
    tables = []
    for entries in samples:
        table: dict[Any, list[Any]] = {}
        for entry in entries:
            table.setdefault(tuple(getattr(entry, name) for name in key), []).append(entry)
        tables.append(table)
    found = []
    for name, entries in tables[-1].items():
        for number, entry in enumerate(entries):
            same = [table.get(name, [])[number : number + 1] for table in tables]
            numbers: dict[str, int | None] = {
                f.name: _sum([getattr(x[0], f.name) if x else 0 for x in same], weights)
                for f in fields(entry)
                if f.name not in (*key, "stride", "bytes") and type(getattr(entry, f.name)) is int
            }
            if hasattr(entry, "stride"):
                numbers["stride"] = _stride([x[0].stride if x else None for x in same], weights)
            found.append(replace(entry, **numbers))
    return tuple(found)


def _stride(strides: Sequence[int | None], weights: Sequence[float]) -> int | None:
    """Rows of the large matrix are further apart; None where a small launch has no one stride."""
    known = [stride for stride in strides if stride is not None]
    if len(known) < len(strides):
        return None
    return round(sum(s * w for s, w in zip(known, weights, strict=True)))


def _sum(values: Sequence[int], weights: Sequence[float]) -> int:
    return max(0, round(sum(v * w for v, w in zip(values, weights, strict=True))))
