"""The counters that exercises set goals on, worked out from what the emulator counts."""

from collections.abc import Callable, Mapping, Sequence

from cupygpt.emulator.counted import AccessCounts, Counts
from cupygpt.errors import LabError

_LOADS = ("read", "async copy")


def _accesses(
    launches: Sequence[Counts], array: str, space: str, kinds: Sequence[str]
) -> list[AccessCounts]:
    found = [
        access
        for counts in launches
        for access in counts.accesses
        if access.space == space and access.kind in kinds and array in ("", access.array)
    ]
    if not found:
        what = f"{space} {kinds[0]}s" + (f" of {array}" if array else "")
        raise LabError(f"the kernel has no {what} to count.")
    return found


def _per_request(launches: Sequence[Counts], array: str, space: str, kinds: Sequence[str]) -> float:
    found = _accesses(launches, array, space, kinds)
    units = sum(a.sectors if space == "global" else a.turns for a in found)
    return units / sum(a.requests for a in found)


def _loads(launches: Sequence[Counts], array: str, sizes: Mapping[str, int]) -> float:
    return sum(a.requests for a in _accesses(launches, array, "global", _LOADS))


def _times_loaded(launches: Sequence[Counts], array: str, sizes: Mapping[str, int]) -> float:
    moved = sum(a.moved_bytes for a in _accesses(launches, array, "global", _LOADS))
    least = sizes[array] if array else sum(32 * counts.read_sectors for counts in launches)
    return moved / least


def _busy_special(launches: Sequence[Counts], array: str, sizes: Mapping[str, int]) -> float:
    lines = [line for counts in launches for line in counts.arithmetic if line.special_slots]
    if not lines:
        raise LabError("the kernel has no special functions to count.")
    return 100 * sum(x.special for x in lines) / sum(x.special_slots for x in lines)


COUNTERS: dict[str, Callable[[Sequence[Counts], str, Mapping[str, int]], float]] = {
    "sectors per load": lambda c, array, sizes: _per_request(c, array, "global", _LOADS),
    "sectors per store": lambda c, array, sizes: _per_request(c, array, "global", ("write",)),
    "turns per shared read": lambda c, array, sizes: _per_request(c, array, "shared", ("read",)),
    "loads of warps": _loads,
    "loads of the warp that loads most": lambda c, array, sizes: sum(x.rounds[1] for x in c),
    "atomics": lambda c, array, sizes: sum(
        x.total(space, "atomic").requests for x in c for space in ("global", "shared")
    ),
    "times the bytes": _times_loaded,
    "times the bytes it must read": _times_loaded,
    "barriers per block": lambda c, array, sizes: sum(x.barriers / x.blocks for x in c),
    "percent of lanes busy in special functions": _busy_special,
}
"""By name: the value for launches, of one array (empty: of all), given the arrays' bytes."""


def measured(counter: str, launches: Sequence[Counts], num_bytes: Mapping[str, int]) -> float:
    """The value of a counter: `sectors per load`, or of one array, `sectors per load of inp`.

    `num_bytes` are the sizes of the arrays. Raises LabError where there is nothing to count.
    """
    name, array = counter, ""
    if counter not in COUNTERS:
        name, _, array = counter.rpartition(" of ")
    return COUNTERS[name](launches, array, num_bytes)


def sentence(counter: str, value: float) -> str:
    """Such as: `sectors per load: 4`, `it moves 3 times the bytes of inp`."""
    if counter.startswith("times "):
        return f"it moves {in_words(value)} {counter}"
    return f"{counter}: {in_words(value)}"


def in_words(value: float) -> str:
    """A counter's value: whole numbers as such, others with three digits."""
    return str(round(value)) if abs(value - round(value)) < 0.005 else f"{value:.3g}"
