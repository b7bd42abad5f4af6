"""Ranks connect with each other, and say what is wrong when they cannot."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from support.rank_threads import rank_infos, run_ranks

import cupygpt
from cupygpt.distributed import rendezvous
from cupygpt.distributed.handshake import introduce
from cupygpt.distributed.launcher_env import LOOPBACK, RankInfo, free_port
from cupygpt.distributed.messages import MessageSocket
from cupygpt.distributed.ranks import broadcast_object, check_equal_on_ranks, rank0_first
from cupygpt.distributed.reception import Reception
from cupygpt.distributed.rendezvous import Connections, connect_ranks
from cupygpt.errors import ConfigError, CupyGPTError, RunError


def close(connections: Connections) -> None:
    for connection in [*connections.control.values(), *connections.watch.values()]:
        connection.close()


def outcome(info: RankInfo, timeout_s: float = 5.0) -> BaseException | None:
    """The exception with which a rank's attempt to connect ends, if any."""
    try:
        close(connect_ranks(info, timeout_s))
    except (CupyGPTError, SystemExit) as error:
        return error
    return None


def outcomes(infos: list[RankInfo]) -> list[BaseException | None]:
    with ThreadPoolExecutor(len(infos)) as pool:
        return list(pool.map(outcome, infos))


def test_values_are_gathered_in_rank_order() -> None:
    def exchange(ranks: Any) -> Any:
        time.sleep(0.02 * (ranks.world - ranks.rank))
        gathered = ranks.all_gather_object(
            {"rank": ranks.rank, "loss": 1 / (3 + ranks.rank), "nan": float("nan")}
        )
        return gathered, broadcast_object(ranks, ranks.rank + 10)

    for values, chosen in run_ranks(3, exchange):
        assert [value["rank"] for value in values] == [0, 1, 2]
        assert [value["loss"] for value in values] == [1 / 3, 1 / 4, 1 / 5]  # the same bits
        assert chosen == 10


@pytest.mark.parametrize("world", [1, 2])
def test_every_rank_receives_the_same_lists(world: int) -> None:
    """JSON has no tuples and no numbers as names: no rank keeps what the others cannot see."""

    def exchange(ranks: Any) -> Any:
        return ranks.all_gather_object({7: (1, 2)}), broadcast_object(ranks, (3, 4))

    assert run_ranks(world, exchange) == [([{"7": [1, 2]}] * world, [3, 4])] * world


def test_rank_0_finishes_before_the_others_begin() -> None:
    order: list[int] = []

    def go(ranks: Any) -> None:
        def work() -> None:
            if ranks.rank == 0:
                time.sleep(0.1)
            order.append(ranks.rank)

        rank0_first(ranks, work)

    run_ranks(3, go)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_facts_that_differ_are_listed_on_all_ranks() -> None:
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


def test_a_port_that_is_in_use_is_reported() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        (first, _) = rank_infos(2, port=other.getsockname()[1])
        error = outcome(first)
    assert isinstance(error, ConfigError)
    assert f"port {first.port}" in str(error)
    assert "is in use" in str(error)
    assert "MASTER_PORT" in str(error)


def test_ranks_that_do_not_connect_are_named() -> None:
    infos = rank_infos(4)
    with ThreadPoolExecutor(2) as pool:
        started = time.monotonic()
        first, third = pool.map(lambda info: outcome(info, 0.5), [infos[0], infos[2]])
        assert time.monotonic() - started < 5
    assert isinstance(first, RunError)
    assert "ranks 1, 3 of 4 did not connect to port" in str(first)
    assert "within 0.5 s" in str(first)
    assert isinstance(third, SystemExit)  # rank 0 has reported it
    assert third.code == 1


def test_a_rank_0_that_does_not_listen_is_reported() -> None:
    error = outcome(rank_infos(2)[1], 0.3)
    assert isinstance(error, RunError)
    assert "could not reach rank 0 at 127.0.0.1" in str(error)


def test_an_unknown_host_is_reported() -> None:
    error = outcome(replace(rank_infos(2)[1], address="no-such-host.invalid"), 0.3)
    assert isinstance(error, RunError)
    assert "no-such-host.invalid" in str(error)


def test_a_rank_with_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Versions:
        """cupygpt as each thread sees it: rank 1 has another version."""

        @property
        def __version__(self) -> str:
            return "0.0.9" if threading.current_thread().name == "rank-1" else cupygpt.__version__

    monkeypatch.setattr("cupygpt.distributed.rendezvous.cupygpt", Versions())
    errors: dict[int, Any] = {}
    threads = [
        threading.Thread(
            target=lambda info=info: errors.update({info.rank: outcome(info)}),
            name=f"rank-{info.rank}",
        )
        for info in rank_infos(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(errors[0], ConfigError)
    assert "runs cupygpt 0.0.9, rank 0 runs" in str(errors[0])
    assert isinstance(errors[1], SystemExit)
    assert errors[1].code == 2


def test_a_rank_of_a_run_of_another_size_is_refused() -> None:
    infos = rank_infos(2)
    first, second = outcomes([infos[0], replace(infos[1], world=4)])
    assert isinstance(first, ConfigError)
    assert "one of 4 ranks, rank 0 as one of 2" in str(first)
    assert isinstance(second, SystemExit)


def test_two_processes_with_the_same_rank_are_refused() -> None:
    infos = rank_infos(3)
    errors = outcomes([infos[0], infos[1], infos[1]])
    assert isinstance(errors[0], ConfigError)
    assert "two processes say that they are rank 1" in str(errors[0])


def test_a_rank_that_loses_a_connection_makes_both_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 must not take its second attempt for another process with the same rank."""
    monkeypatch.setattr(rendezvous, "ANSWER_S", 0.3)
    attempts: list[str] = []

    def breaks_once(connection: MessageSocket, key: str, identity: Any, timeout_s: float) -> None:
        attempts.append(identity.kind)
        if attempts == ["control", "watch"]:
            raise ConnectionResetError
        introduce(connection, key, identity, timeout_s)

    monkeypatch.setattr(rendezvous, "introduce", breaks_once)
    assert outcomes(rank_infos(2)) == [None, None]
    assert attempts == ["control", "watch", "control", "watch"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [({"refused": "", "code": 0}, 1), ({"refused": ""}, 1), ({"refused": "", "code": 2}, 2)],
)
def test_no_refusal_ends_a_rank_as_a_success(answer: dict[str, Any], code: int) -> None:
    first, second = rank_infos(2)

    def refuse() -> None:
        with Reception(first) as reception:
            joined = [reception.next_rank(time.monotonic() + 5.0) for _ in range(2)]
            for identity, connection in joined:
                if identity.kind == "control":
                    connection.send(answer)
            for _, connection in joined:
                connection.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    error = outcome(second)
    thread.join()
    assert isinstance(error, SystemExit)
    assert error.code == code


def test_a_process_with_another_key_does_not_become_a_rank() -> None:
    """It knows everything but the key, and even connects before the true rank 1."""
    infos = rank_infos(2)
    with ThreadPoolExecutor(3) as pool:
        intruder = pool.submit(outcome, replace(infos[1], key="a guess"), 0.5)
        first = pool.submit(outcome, infos[0])
        error = intruder.result()
        assert isinstance(error, RunError)
        assert "has another key" in str(error)
        second = pool.submit(outcome, infos[1])
        assert first.result() is None
        assert second.result() is None


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port(LOOPBACK)
    with socket.create_server((LOOPBACK, port)):
        pass
