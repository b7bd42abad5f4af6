"""A rank that dies ends the others, and the reason is reported once."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cupygpt.distributed import watchdog
from cupygpt.distributed.launcher_env import LOOPBACK
from cupygpt.distributed.messages import MessageSocket
from cupygpt.distributed.watchdog import Watchdog

STARTED: list["Process"] = []


class Process:
    """One rank: its watchdog, its exit code and its messages."""

    def __init__(
        self, rank: int, connections: dict[int, MessageSocket], heartbeat_s: float = 0.05
    ) -> None:
        STARTED.append(self)
        self.code: int | None = None
        self.messages: list[str] = []
        self.connections = connections
        self.watchdog = Watchdog(
            rank,
            connections,
            end=self._end,
            report=self.messages.append,
            heartbeat_s=heartbeat_s,
        )

    def _end(self, code: int) -> None:
        self.code = code
        self.vanish()

    def vanish(self) -> None:
        """What the system does when a process ends: its threads stop, its connections close."""
        self.watchdog._ending.acquire(blocking=False)
        for connection in self.connections.values():
            connection.close()


def connection() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server((LOOPBACK, 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    return here, there


def start(world: int, **options: Any) -> list[Process]:
    """Ranks whose connections go to rank 0."""
    of_rank0: dict[int, MessageSocket] = {}
    of_others = []
    for rank in range(1, world):
        a, b = connection()
        of_rank0[rank] = MessageSocket(a)
        of_others.append({0: MessageSocket(b)})
    return [Process(0, of_rank0, **options)] + [
        Process(rank, to_rank0, **options) for rank, to_rank0 in enumerate(of_others, start=1)
    ]


@pytest.fixture(autouse=True)
def close_all_sockets() -> Iterator[None]:
    yield
    for process in STARTED:
        process.vanish()
    STARTED.clear()


def wait_until(condition: Callable[[], bool], limit_s: float = 3.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_rank_that_vanishes_ends_all_ranks() -> None:
    first, second, third = start(3)
    first.watchdog.on_abort = lambda: "The last complete checkpoint is step 5."
    second.vanish()
    wait_until(lambda: first.code is not None and third.code is not None)
    assert (first.code, third.code) == (1, 1)
    (message,) = first.messages
    assert message.startswith("error: rank 1 is lost: its process ended")
    assert message.endswith("The last complete checkpoint is step 5.")
    assert third.messages == []  # rank 0 has reported it


def test_a_rank_0_that_vanishes_ends_all_ranks() -> None:
    first, second, third = start(3)
    first.vanish()
    wait_until(lambda: second.code is not None and third.code is not None)
    assert second.messages[0].startswith("error: rank 1: rank 0 is lost")
    assert third.messages[0].startswith("error: rank 2: rank 0 is lost")


def test_a_failing_rank_lets_rank_0_report_its_reason_and_code() -> None:
    first, second, third = start(3)
    assert second.watchdog.fail("the disk is full.", 1) is True
    wait_until(lambda: first.code is not None and third.code is not None)
    assert first.messages == ["error: rank 1: the disk is full."]
    assert (first.code, third.code) == (1, 1)
    assert third.messages == second.messages == []


def test_rank_0_reports_its_own_failure_itself() -> None:
    first, second, third = start(3)
    assert first.watchdog.fail("-b 0 is not allowed.", 2) is False
    assert (second.code, third.code) == (2, 2)
    assert first.messages == second.messages == third.messages == []


def test_two_failures_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "DELIVERY_S", 0.3)
    first, second, third = start(3)
    ends: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda watchdog=watchdog: ends.append(watchdog.fail("the same reason.", 2))
        )
        for watchdog in (second.watchdog, third.watchdog)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(first.messages) == 1
    assert ends == [True, True]


def test_a_rank_that_sends_no_heartbeats_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "MAX_MISSED_HEARTBEATS", 4)
    ours, theirs = connection()
    first = Process(0, {1: MessageSocket(ours)})
    wait_until(lambda: first.code is not None)
    assert "it sent nothing for 0.2 s" in first.messages[0]
    theirs.close()


def test_heartbeats_keep_idle_ranks_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "MAX_MISSED_HEARTBEATS", 4)
    everyone = start(3, heartbeat_s=0.02)
    time.sleep(0.6)
    assert [process.code for process in everyone] == [None] * 3
    end(everyone)


def end(everyone: list[Process]) -> None:
    threads = [threading.Thread(target=process.watchdog.close) for process in everyone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_end_of_a_run_is_no_failure() -> None:
    everyone = start(3)
    end(everyone)
    time.sleep(0.1)
    assert [process.code for process in everyone] == [None] * 3
    assert [process.messages for process in everyone] == [[]] * 3


def test_ranks_end_with_the_launcher_that_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(watchdog.LAUNCHER_PID, "1")  # not the parent of a test
    first, second = start(2)
    wait_until(lambda: first.code is not None and second.code is not None)
    assert any("the process that started rank" in text for text in first.messages + second.messages)


@pytest.mark.parametrize("code", [0, -1, 256, 1 << 40, True, "2", None, [1]])
def test_no_message_ends_a_rank_as_a_success(code: Any) -> None:
    first, second, third = start(3)
    second.connections[0].send({"failed": "it failed.", "code": code})
    wait_until(lambda: first.code is not None and third.code is not None)
    assert (first.code, third.code) == (1, 1)


def test_the_text_of_another_rank_cannot_control_the_terminal() -> None:
    first, second = start(2)
    second.connections[0].send({"failed": "\x1b[2Jgone\r\x07\u202e\nnext line", "code": 3})
    wait_until(lambda: first.code is not None)
    assert first.messages == ["error: rank 1: \\x1b[2Jgone\\r\\x07\\u202e\nnext line"]
    assert first.code == 3


@pytest.mark.parametrize("message", [{}, {"code": 1}, {"failed": ["x"] * 9, "rank": "7"}])
def test_a_failure_without_its_fields_still_ends_all_ranks(message: dict[str, Any]) -> None:
    first, second, third = start(3)
    second.connections[0].send(message)
    wait_until(lambda: first.code is not None and third.code is not None)
    assert len(first.messages) == 1


def no_disk() -> str:
    raise OSError("the disk is gone")


def slow_disk() -> str:
    time.sleep(4.0)
    return "too late"


@pytest.mark.parametrize("on_abort", [no_disk, slow_disk])
def test_advice_that_fails_or_hangs_does_not_delay_the_end(on_abort: Callable[[], str]) -> None:
    first, second = start(2)
    first.watchdog.on_abort = on_abort
    second.vanish()
    wait_until(lambda: first.code is not None)
    assert first.messages[0].rstrip().endswith("All ranks end.")


def test_a_rank_may_leave_before_the_others_know_that_the_run_is_over() -> None:
    first, second = start(2)
    second.watchdog._send_to_all("bye")
    second.vanish()
    time.sleep(0.1)
    assert first.code is None
