"""Estimates against the times of an H100. The constants were fitted to these launches."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from cupygpt.errors import ConfigError
from cupygpt.performance.estimate import Work, blocks_at_once, estimate_of
from cupygpt.performance.gpus import GPUS, gpu_by_name

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "times_h100.json").read_text(encoding="utf-8")
)
H100 = GPUS["H100"]
LAUNCHES = [
    (label, kernel, Work(**dict(zip(GOLDEN["work"], work, strict=True))), measured)
    for label, kernel, work, measured in GOLDEN["launches"]
]
SMALL = Work(
    blocks=1,
    threads=256,
    shared_bytes=0,
    least_bytes=2048,
    written_bytes=1024,
    l2_sectors=64,
    l1_cycles=16,
    flop_slots=0,
    special_slots=0,
    tensor_flop=0,
    rounds=1,
)


def ratios(*, large: bool) -> list[float]:
    """Estimate / measured of all launches, or of the large ones, whose labels are upper-case."""
    return [
        estimate_of(work, H100).microseconds / measured
        for label, _, work, measured in LAUNCHES
        if label[:3].isupper() or not large
    ]


@pytest.mark.golden
def test_all_launches_lie_within_a_factor_of_one_and_a_half() -> None:
    found = ratios(large=False)
    assert len(found) == 104
    assert 0.71 < min(found) < max(found) < 1.46
    assert math.sqrt(sum(math.log(r) ** 2 for r in found) / len(found)) < 0.115
    assert sum(abs(r - 1) <= 0.2 for r in found) >= 95


@pytest.mark.golden
def test_large_launches_lie_within_a_sixth() -> None:
    found = ratios(large=True)
    assert len(found) == 22
    assert 0.86 < min(found) < max(found) < 1.17


@pytest.mark.golden
def test_rungs_are_in_the_order_that_was_measured() -> None:
    """Pairs whose times differ by over 10 %; a rung may be two kernels."""
    ladders: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    for label, _, work, measured in LAUNCHES:
        words = label.removeprefix("ladder ").split()
        if len(words) == 3 and words[1].isdigit():
            rung = ladders[words[0], words[2]].setdefault(words[1], [0.0, 0.0])
            rung[0] += estimate_of(work, H100).microseconds
            rung[1] += measured
    pairs = [
        (a, b)
        for rungs in ladders.values()
        for a, b in itertools.combinations(rungs.values(), 2)
        if max(a[1], b[1]) > 1.1 * min(a[1], b[1])
    ]
    assert len(pairs) == 55
    assert all((a[0] < b[0]) == (a[1] < b[1]) for a, b in pairs)


def test_the_limit_is_the_longest_term() -> None:
    found = estimate_of(SMALL, H100)
    assert found.limit == "waiting"
    assert found.microseconds == pytest.approx(2.5 + 0.42, abs=0.01)
    assert found.held_threads == pytest.approx(256 / (2048 * 132))
    for field, limit in (
        ("least_bytes", "DRAM"),
        ("l2_sectors", "L2"),
        ("l1_cycles", "L1 and shared memory"),
        ("flop_slots", "arithmetic"),
        ("special_slots", "arithmetic"),
        ("tensor_flop", "arithmetic"),
        ("rounds", "waiting"),
    ):
        more = Work(**{**SMALL.__dict__, field: 10**12})
        assert estimate_of(more, H100).limit == limit


def test_a_faster_memory_shortens_what_dram_limits() -> None:
    copy = Work(**{**SMALL.__dict__, "blocks": 10**5, "least_bytes": 10**9})
    times = [estimate_of(copy, GPUS[name]).microseconds for name in ("T4", "H100", "H200")]
    assert times == sorted(times, reverse=True)
    assert times[1] / times[2] == pytest.approx(4800 / 3350, rel=0.1)


@pytest.mark.parametrize(
    ("threads", "shared", "registers", "blocks"),
    [
        (256, 0, 0, 8),
        (1024, 0, 0, 2),
        (32, 0, 0, 32),
        (128, 100_000, 0, 2),
        (256, 0, 128, 2),
        (256, 0, 255, 1),
        (64, 0, 32, 32),
    ],
)
def test_blocks_at_once(threads: int, shared: int, registers: int, blocks: int) -> None:
    work = Work(**{**SMALL.__dict__, "threads": threads, "shared_bytes": shared})
    assert blocks_at_once(work, H100, registers) == blocks


def test_gpus_by_name() -> None:
    assert gpu_by_name("rtx4090") is gpu_by_name("RTX 4090") is GPUS["RTX 4090"]
    with pytest.raises(ConfigError, match="no figures of a GPU 'B200', only of T4, RTX 3060"):
        gpu_by_name("B200")
