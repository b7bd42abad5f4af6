"""A rank that dies ends the others, with the reason told once."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cupygpt.distributed import watchdog
from cupygpt.distributed.launcher_env import LOOPBACK
from cupygpt.distributed.messages import Wire
from cupygpt.distributed.watchdog import Watchdog

MADE: list["Process"] = []


class Process:
    """One rank: its watchdog, and what became of it."""

    def __init__(self, rank: int, wires: dict[int, Wire], beat_s: float = 0.05) -> None:
        MADE.append(self)
        self.code: int | None = None
        self.said: list[str] = []
        self.wires = wires
        self.dog = Watchdog(rank, wires, end=self._end, report=self.said.append, beat_s=beat_s)

    def _end(self, code: int) -> None:
        self.code = code
        self.vanish()

    def vanish(self) -> None:
        """As the system closes the connections of a process that ends, its threads with it."""
        self.dog._ending.acquire(blocking=False)
        for wire in self.wires.values():
            wire.close()


def connection() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server((LOOPBACK, 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    return here, there


def start(world: int, **options: Any) -> list[Process]:
    """Ranks whose connections go to rank 0."""
    hub: dict[int, Wire] = {}
    others = []
    for rank in range(1, world):
        a, b = connection()
        hub[rank] = Wire(a)
        others.append({0: Wire(b)})
    return [Process(0, hub, **options)] + [
        Process(rank, wires, **options) for rank, wires in enumerate(others, start=1)
    ]


@pytest.fixture(autouse=True)
def no_sockets_are_left() -> Iterator[None]:
    yield
    for process in MADE:
        process.vanish()
    MADE.clear()


def wait_until(true: Callable[[], bool], limit_s: float = 3.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_rank_that_vanishes_ends_all() -> None:
    first, second, third = start(3)
    first.dog.advice = lambda: "The last complete checkpoint is step 5."
    second.vanish()
    wait_until(lambda: first.code is not None and third.code is not None)
    assert (first.code, third.code) == (1, 1)
    (said,) = first.said
    assert said.startswith("error: rank 1 is lost: its process ended")
    assert said.endswith("The last complete checkpoint is step 5.\n")
    assert third.said == []  # rank 0 has reported it


def test_rank_0_vanishing_ends_all() -> None:
    first, second, third = start(3)
    first.vanish()
    wait_until(lambda: second.code is not None and third.code is not None)
    assert second.said[0].startswith("error: rank 1: rank 0 is lost")
    assert third.said[0].startswith("error: rank 2: rank 0 is lost")


def test_a_failing_rank_lets_rank_0_report_its_reason_and_code() -> None:
    first, second, third = start(3)
    assert second.dog.fail("the disk is full.", 1) is True
    wait_until(lambda: first.code is not None and third.code is not None)
    assert first.said == ["error: rank 1: the disk is full.\n"]
    assert (first.code, third.code) == (1, 1)
    assert third.said == second.said == []


def test_rank_0_reports_its_own_failure_itself() -> None:
    first, second, third = start(3)
    assert first.dog.fail("-b 0 cannot be.", 2) is False
    assert (second.code, third.code) == (2, 2)
    assert first.said == second.said == third.said == []


def test_two_failures_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "DELIVERY_S", 0.3)
    first, second, third = start(3)
    ends: list[bool] = []
    threads = [
        threading.Thread(target=lambda dog=dog: ends.append(dog.fail("the same reason.", 2)))
        for dog in (second.dog, third.dog)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(first.said) == 1
    assert ends == [True, True]


def test_silence_is_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "MISSED_BEATS", 4)
    ours, theirs = connection()
    first = Process(0, {1: Wire(ours)})
    wait_until(lambda: first.code is not None)
    assert "nothing was heard of it for 0.2 s" in first.said[0]
    theirs.close()


def test_beats_keep_idle_ranks_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "MISSED_BEATS", 4)
    everyone = start(3, beat_s=0.02)
    time.sleep(0.6)
    assert [process.code for process in everyone] == [None] * 3
    end(everyone)


def end(everyone: list[Process]) -> None:
    threads = [threading.Thread(target=process.dog.close) for process in everyone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_run_that_is_over_is_no_failure() -> None:
    everyone = start(3)
    end(everyone)
    time.sleep(0.1)
    assert [process.code for process in everyone] == [None] * 3
    assert [process.said for process in everyone] == [[]] * 3


def test_ranks_end_with_the_launcher_that_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(watchdog.LAUNCHER_PID, "1")  # not the parent of a test
    first, second = start(2)
    wait_until(lambda: first.code is not None and second.code is not None)
    assert any("the process that started rank" in text for text in first.said + second.said)


def test_advice_that_hangs_or_fails_does_not_delay_the_end() -> None:
    first, second = start(2)

    def broken() -> str:
        raise OSError("the disk is gone")

    first.dog.advice = broken
    second.vanish()
    wait_until(lambda: first.code is not None)
    assert first.said[0].rstrip().endswith("All ranks end.")


def test_a_rank_may_leave_before_the_others_know_that_it_is_over() -> None:
    first, second = start(2)
    second.dog._tell("bye")
    second.vanish()
    time.sleep(0.1)
    assert first.code is None
