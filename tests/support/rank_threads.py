"""Ranks as threads of the test's own process: they connect over TCP as processes do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cupygpt.distributed.launcher_env import LOOPBACK, RankInfo, free_port
from cupygpt.distributed.ranks import ONE_RANK, ManyRanks
from cupygpt.distributed.rendezvous import connect_ranks

Result = TypeVar("Result")

KEY = "the key of a test"


def rank_infos(world: int, port: int | None = None) -> list[RankInfo]:
    """`world` ranks of one run on this host, at a free port unless one is given."""
    port = port or free_port(LOOPBACK)
    return [RankInfo(rank, world, rank, LOOPBACK, port, "a test", KEY) for rank in range(world)]


def run_ranks(world: int, function: Callable[[Any], Result]) -> list[Result]:
    """What `function(ranks)` returns on each rank."""
    if world == 1:
        return [function(ONE_RANK)]
    ended: list[int] = []

    def run(info: RankInfo) -> Result:
        with ManyRanks(info, connect_ranks(info, 10.0), end=ended.append) as ranks:
            return function(ranks)

    with ThreadPoolExecutor(world) as pool:
        results = list(pool.map(run, rank_infos(world)))
    assert ended == []
    return results
