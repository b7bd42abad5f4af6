"""Regions of the upload ring: a region is used again only when no copy reads from it."""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest


def _ring_type() -> Any:
    """PinnedRing. It needs nothing of CuPy, which its file imports: an empty module will do."""
    name = "cupygpt.device.cuda"
    if name in sys.modules:
        return sys.modules[name].PinnedRing
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", ModuleType("cupy"))
        ring = importlib.import_module(name).PinnedRing
    del sys.modules[name]  # a test on a GPU needs the file with CuPy itself
    return ring


PinnedRing = _ring_type()


class Copies:
    """A stream whose copies end only when somebody waits for them."""

    def __init__(self) -> None:
        self.waited: list[int] = []
        self._count = 0

    def record(self) -> "_Event":
        self._count += 1
        return _Event(self._count - 1, self.waited)


class _Event:
    def __init__(self, number: int, waited: list[int]) -> None:
        self.number, self.waited = number, waited

    def synchronize(self) -> None:
        self.waited.append(self.number)


def take(ring: Any, num_bytes: int) -> int:
    """Offset of the next region."""
    with ring.take(num_bytes) as region:
        assert region.size == num_bytes
        region[...] = 1
        return region.ctypes.data


def test_nothing_waits_until_the_ring_is_full() -> None:
    copies = Copies()
    buffer = np.zeros(4096, np.uint8)
    ring = PinnedRing(buffer, copies.record)
    offsets = [take(ring, 1000) - buffer.ctypes.data for _ in range(4)]
    assert offsets == [0, 1024, 2048, 3072]
    assert copies.waited == []


def test_a_wrap_waits_only_for_regions_that_overlap() -> None:
    copies = Copies()
    ring = PinnedRing(np.zeros(4096, np.uint8), copies.record)
    for _ in range(4):
        take(ring, 1000)
    take(ring, 1500)  # lies where regions 0 and 1 were
    assert copies.waited == [0, 1]
    take(ring, 600)  # overlaps region 2
    assert copies.waited == [0, 1, 2]


def test_a_region_that_does_not_fit_before_the_end_begins_at_0() -> None:
    copies = Copies()
    buffer = np.zeros(4096, np.uint8)
    ring = PinnedRing(buffer, copies.record)
    take(ring, 3000)
    assert take(ring, 2000) == buffer.ctypes.data
    assert copies.waited == [0]


def test_the_whole_ring_at_once() -> None:
    copies = Copies()
    ring = PinnedRing(np.zeros(4096, np.uint8), copies.record)
    for _ in range(3):
        take(ring, 4096)
    assert copies.waited == [0, 1]


def test_regions_never_overlap_a_copy_in_flight() -> None:
    copies = Copies()
    buffer = np.zeros(4096, np.uint8)
    ring = PinnedRing(buffer, copies.record)
    rng = np.random.default_rng(0)
    taken: list[tuple[int, int]] = []
    for size in rng.integers(1, 1500, 500):
        start = take(ring, int(size)) - buffer.ctypes.data
        in_flight = [taken[i] for i in range(len(taken)) if i not in copies.waited]
        assert all(start >= stop or begin >= start + size for begin, stop in in_flight)
        taken.append((start, start + int(size)))
    assert copies.waited == sorted(copies.waited)


def test_a_region_larger_than_the_ring_is_a_bug() -> None:
    ring = PinnedRing(np.zeros(16, np.uint8), Copies().record)
    with pytest.raises(AssertionError), ring.take(17):
        pass
