"""Ranks as threads of the test's own process: they meet over TCP as processes do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cupygpt.distributed.launcher_env import LOOPBACK, RankInfo, free_port
from cupygpt.distributed.ranks import ManyRanks, OneRank
from cupygpt.distributed.rendezvous import meet

Result = TypeVar("Result")


def places(world: int, port: int | None = None) -> list[RankInfo]:
    port = port or free_port(LOOPBACK)
    return [RankInfo(rank, world, rank, LOOPBACK, port, "a test") for rank in range(world)]


def run_ranks(world: int, function: Callable[[Any], Result]) -> list[Result]:
    """What `function(ranks)` returns on each rank."""
    if world == 1:
        return [function(OneRank())]
    ended: list[int] = []

    def run(place: RankInfo) -> Result:
        with ManyRanks(place, meet(place, 10.0), end=ended.append) as ranks:
            return function(ranks)

    with ThreadPoolExecutor(world) as pool:
        results = list(pool.map(run, places(world)))
    assert ended == []
    return results
