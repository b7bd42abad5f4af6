"""The loops of a kernel: which basic blocks each one holds, and where a round of it begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Loops:
    """All loops of a library. A loop is a number; inner loops come after those around them."""

    parent: list[int] = field(default_factory=list)
    """By loop: the loop around it, or -1."""
    innermost: dict[int, int] = field(default_factory=dict)
    """By basic block: the innermost loop that holds it; no block outside of all loops."""
    header: dict[int, int] = field(default_factory=dict)
    """By basic block: the loop whose rounds begin there."""


def find_loops(followers: Mapping[int, Sequence[int]], entered: Iterable[int]) -> Loops:
    """The loops of a graph of basic blocks.

    A loop is a set of blocks that all reach each other, as large as possible. Its rounds begin
    where it is entered. Without the steps to that block, what is left are the loops inside it.

    Args:
        followers: by block, those that may run next.
        entered: the blocks that functions begin with.
    """
    found = Loops()
    work = [(frozenset(followers), {b: set(after) for b, after in followers.items()}, -1)]
    entries = set(entered)
    while work:
        blocks, steps, parent = work.pop()
        for circle in _circles(sorted(blocks), steps):
            from_outside = {b for block in blocks - circle for b in steps[block]} | entries
            first = min(from_outside & circle or circle)
            number = len(found.parent)
            found.parent.append(parent)
            found.header[first] = number
            found.innermost.update(dict.fromkeys(circle, number))
            work.append((circle, {b: steps[b] & circle - {first} for b in circle}, number))
    return found


def _circles(blocks: Sequence[int], steps: Mapping[int, set[int]]) -> list[frozenset[int]]:
    """The sets of blocks that reach each other and themselves.

    By Kosaraju's algorithm: in the order in which a search ends, last first, each block and what
    reaches it belong together.
    """
    back: dict[int, set[int]] = {block: set() for block in blocks}
    for block in blocks:
        for after in steps[block]:
            back[after].add(block)
    order: list[int] = []
    _search(blocks, steps, order)
    seen: set[int] = set()
    found = []
    for block in reversed(order):
        group: list[int] = []
        _search([block], back, group, seen)
        if len(group) > 1 or (group and block in steps[block]):
            found.append(frozenset(group))
    return found


def _search(
    starts: Iterable[int],
    steps: Mapping[int, set[int]],
    ended: list[int],
    seen: set[int] | None = None,
) -> None:
    """Appends the blocks that are reached from `starts` and were not `seen`, in order of end."""
    seen = set() if seen is None else seen
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        way = [(start, iter(steps[start]))]
        while way:
            block, rest = way[-1]
            after = next((b for b in rest if b not in seen), None)
            if after is None:
                ended.append(block)
                way.pop()
            else:
                seen.add(after)
                way.append((after, iter(steps[after])))
