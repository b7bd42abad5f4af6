"""Ranks meet, and say what is wrong when they cannot."""

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.rank_threads import places, run_ranks

import cupygpt
from cupygpt.distributed.launcher_env import LOOPBACK, RankInfo, free_port
from cupygpt.distributed.ranks import broadcast_object, check_equal_on_ranks, rank0_first
from cupygpt.distributed.rendezvous import Meeting, meet
from cupygpt.errors import ConfigError, CupyGPTError, RunError


def close(meeting: Meeting) -> None:
    for wire in [*meeting.control.values(), *meeting.watch.values()]:
        wire.close()


def outcome(place: RankInfo, timeout_s: float = 5.0) -> BaseException | None:
    """The exception with which a rank's meeting ends, if any."""
    try:
        close(meet(place, timeout_s))
    except (CupyGPTError, SystemExit) as error:
        return error
    return None


def outcomes(here: list[RankInfo]) -> list[BaseException | None]:
    with ThreadPoolExecutor(len(here)) as pool:
        return list(pool.map(outcome, here))


def test_values_go_round_in_the_order_of_the_ranks() -> None:
    def rounds(ranks: Any) -> Any:
        time.sleep(0.02 * (ranks.world - ranks.rank))
        first = ranks.all_gather_object(
            {"rank": ranks.rank, "loss": 1 / (3 + ranks.rank), "nan": float("nan")}
        )
        return first, broadcast_object(ranks, ranks.rank + 10)

    for values, chosen in run_ranks(3, rounds):
        assert [value["rank"] for value in values] == [0, 1, 2]
        assert [value["loss"] for value in values] == [1 / 3, 1 / 4, 1 / 5]  # the same bits
        assert chosen == 10


def test_the_first_goes_alone() -> None:
    order: list[int] = []

    def go(ranks: Any) -> None:
        def work() -> None:
            if ranks.rank == 0:
                time.sleep(0.1)
            order.append(ranks.rank)

        rank0_first(ranks, work, is_first=ranks.rank == 0)

    run_ranks(3, go)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_what_differs_is_listed_on_all_ranks() -> None:
    def compare(ranks: Any) -> str:
        check_equal_on_ranks(ranks, "flags", {"seed": 1})
        with pytest.raises(ConfigError) as caught:
            check_equal_on_ranks(
                ranks, "libraries", {"NCCL": f"2.{ranks.rank // 2}", "CuPy": "14.2.0"}
            )
        return str(caught.value)

    texts = run_ranks(3, compare)
    assert len(set(texts)) == 1
    assert "libraries" in texts[0]
    assert "NCCL: 2.0 on rank 0, 2.1 on rank 2" in texts[0]
    assert "CuPy" not in texts[0]


def test_a_port_in_use() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        (first, _) = places(2, port=other.getsockname()[1])
        error = outcome(first)
    assert isinstance(error, ConfigError)
    assert f"port {first.port}" in str(error)
    assert "is in use" in str(error)
    assert "MASTER_PORT" in str(error)


def test_a_rank_that_never_comes() -> None:
    here = places(4)
    with ThreadPoolExecutor(2) as pool:
        started = time.monotonic()
        first, third = pool.map(lambda place: outcome(place, 0.5), [here[0], here[2]])
        assert time.monotonic() - started < 5
    assert isinstance(first, RunError)
    assert "ranks 1, 3 of 4 did not come" in str(first)
    assert "within 0.5 s" in str(first)
    assert isinstance(third, SystemExit)  # rank 0 has reported it
    assert third.code == 1


def test_rank_0_never_comes() -> None:
    error = outcome(places(2)[1], 0.3)
    assert isinstance(error, RunError)
    assert "could not reach rank 0 at 127.0.0.1" in str(error)


def test_a_host_that_has_no_name() -> None:
    error = outcome(replace(places(2)[1], address="no-such-host.invalid"), 0.3)
    assert isinstance(error, RunError)
    assert "no-such-host.invalid" in str(error)


def test_another_version_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Versions:
        """cupygpt as each thread has it: rank 1 another one."""

        @property
        def __version__(self) -> str:
            return "0.0.9" if threading.current_thread().name == "rank-1" else cupygpt.__version__

    monkeypatch.setattr("cupygpt.distributed.rendezvous.cupygpt", Versions())
    here, errors = places(2), {}
    threads = [
        threading.Thread(
            target=lambda place=place: errors.update({place.rank: outcome(place)}),
            name=f"rank-{place.rank}",
        )
        for place in here
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(errors[0], ConfigError)
    assert "runs cupygpt 0.0.9, rank 0" in str(errors[0])
    assert isinstance(errors[1], SystemExit)
    assert errors[1].code == 2


def test_another_number_of_ranks_is_turned_away() -> None:
    here = places(2)
    first, second = outcomes([here[0], replace(here[1], world=4)])
    assert isinstance(first, ConfigError)
    assert "one of 4 ranks, rank 0 as one of 2" in str(first)
    assert isinstance(second, SystemExit)


def test_two_processes_of_the_same_rank_are_turned_away() -> None:
    here = places(3)
    errors = outcomes([here[0], here[1], here[1]])
    assert isinstance(errors[0], ConfigError)
    assert "two processes say they are rank 1" in str(errors[0])


@pytest.mark.parametrize("words", [b"GET / HTTP/1.0\r\n\r\n", struct.pack("<Q", 4) + b"null", b""])
def test_strangers_are_ignored(words: bytes) -> None:
    here = places(2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(outcome, here[0])
        stranger = None
        while stranger is None:
            try:
                stranger = socket.create_connection((LOOPBACK, here[0].port))
            except ConnectionRefusedError:
                time.sleep(0.01)
        with stranger:
            stranger.sendall(words)
            if not words:
                stranger.shutdown(socket.SHUT_WR)
            second = pool.submit(outcome, here[1])
            assert first.result() is None
            assert second.result() is None


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port(LOOPBACK)
    with socket.create_server((LOOPBACK, port)):
        pass


def test_sums_and_parts_over_sockets() -> None:
    from cupygpt.distributed.sockets import SocketCollectivesForTests

    def compute(ranks: Any) -> Any:
        collectives = SocketCollectivesForTests(ranks)
        a = np.full(3, 1.5 + ranks.rank, np.float32)
        b = np.full((2, 2), 10.0 * ranks.rank, np.float32)
        collectives.all_reduce_async([a, b])
        collectives.wait()
        whole = np.zeros(6, np.float32)
        part = slice(2 * ranks.rank, 2 * ranks.rank + 2)
        whole[part] = ranks.rank + 1
        collectives.all_gather(whole, part.start, part.stop)
        return a, b, whole

    for a, b, whole in run_ranks(3, compute):
        assert a.tolist() == [7.5] * 3
        assert b.tolist() == [[30.0, 30.0], [30.0, 30.0]]
        assert whole.tolist() == [1, 1, 2, 2, 3, 3]
