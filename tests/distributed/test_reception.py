"""Rank 0 listens at one address, and hears all who connect side by side."""

import contextlib
import errno
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.rank_threads import KEY, rank_infos

from cupygpt.distributed import reception
from cupygpt.distributed.handshake import Guest, Identity, introduce
from cupygpt.distributed.launcher_env import LOOPBACK, RankInfo
from cupygpt.distributed.messages import MessageSocket
from cupygpt.distributed.reception import Reception, listen
from cupygpt.errors import ConfigError

IDENTITY = Identity(kind="control", rank=1, world=2, host="a host", version="1")


@pytest.fixture
def rank0() -> Iterator[RankInfo]:
    info = rank_infos(2)[0]
    with Reception(info) as waiting:
        thread = threading.Thread(target=receive_all, args=(waiting,), daemon=True)
        thread.start()
        yield info
        thread.join()


def receive_all(waiting: Reception) -> None:
    """Hear guests until a rank has come."""
    _, connection = waiting.next_rank(time.monotonic() + 20.0)
    connection.close()


def connect(info: RankInfo) -> socket.socket:
    return socket.create_connection((LOOPBACK, info.port), timeout=5.0)


def seconds_to_join(info: RankInfo) -> float:
    started = time.monotonic()
    with connect(info) as rank:
        introduce(MessageSocket(rank), KEY, IDENTITY, 5.0)
        assert rank.recv(1) == b""  # closed by receive_all
    return time.monotonic() - started


def test_a_rank_does_not_wait_for_silent_and_slow_strangers(rank0: RankInfo) -> None:
    strangers = [connect(rank0) for _ in range(60)]
    for number, stranger in enumerate(strangers):
        stranger.sendall([b"", b"\0", struct.pack("<Q", 4000) + b" " * number][number % 3])
    assert seconds_to_join(rank0) < 1.0
    for stranger in strangers:
        stranger.close()


def test_a_stranger_is_closed_at_the_deadline_even_if_it_keeps_sending(
    monkeypatch: pytest.MonkeyPatch, rank0: RankInfo
) -> None:
    monkeypatch.setattr(reception, "GREETING_S", 0.3)
    started = time.monotonic()
    with connect(rank0) as stranger:
        stranger.sendall(struct.pack("<Q", 4000))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < started + 5.0:
                stranger.sendall(b" ")
                time.sleep(0.02)
    assert 0.2 < time.monotonic() - started < 2.0
    seconds_to_join(rank0)


def test_a_flood_of_strangers_takes_no_more_than_its_places(
    monkeypatch: pytest.MonkeyPatch, rank0: RankInfo
) -> None:
    """The one that has waited longest makes room."""
    monkeypatch.setattr(reception, "GREETING_S", 30.0)
    strangers = [connect(rank0) for _ in range(reception.MOST_GUESTS + 20)]
    strangers[0].settimeout(5.0)
    assert strangers[0].recv(1) == b""
    assert seconds_to_join(rank0) < 5.0
    for stranger in strangers:
        stranger.close()


def test_strangers_who_take_all_file_descriptors_do_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, rank0: RankInfo
) -> None:
    """Neither accepting nor waiting raises; a rank comes in when there is room again."""
    hear, failures = Guest.hear, [OSError(errno.EMFILE, "Too many open files")] * 3

    def sometimes(guest: Guest) -> Identity | None:
        if failures:
            raise failures.pop()
        return hear(guest)

    monkeypatch.setattr(Guest, "hear", sometimes)
    for _ in range(3):
        with connect(rank0) as stranger:
            stranger.sendall(b"x")
            assert stranger.recv(1) == b""
    assert seconds_to_join(rank0) < 5.0


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address")


@on_linux
def test_rank_0_listens_at_the_named_address_only() -> None:
    info = replace(rank_infos(2)[0], address="127.0.0.2")
    with listen(info) as server:
        assert server.getsockname()[0] == "127.0.0.2"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, info.port), timeout=1.0)


def looked_up(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name have these addresses."""
    found: list[Any] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *place, flags=0, **more: real(*place, flags=flags) if flags else found,
    )


@on_linux
@pytest.mark.parametrize(
    ("name", "one_host", "hosts", "bound"),
    [
        ("gpu07", False, ["127.0.0.3", "192.0.2.1"], "127.0.0.3"),
        ("gpu07", True, ["127.0.1.1"], "127.0.1.1"),
        ("gpu07", False, ["127.0.1.1"], "0.0.0.0"),
        ("localhost", False, ["127.0.0.1"], "127.0.0.1"),
        ("127.0.0.5", False, ["127.0.0.5"], "127.0.0.5"),
        ("127.1", False, ["127.0.0.1"], "127.0.0.1"),
    ],
)
def test_a_name_stands_for_its_address(
    monkeypatch: pytest.MonkeyPatch, name: str, one_host: bool, hosts: list[str], bound: str
) -> None:
    """Systems that give their own name 127.0.1.1 must still be reached from other hosts."""
    looked_up(monkeypatch, *hosts)
    with listen(replace(rank_infos(2)[0], address=name, one_host=one_host)) as server:
        assert server.getsockname()[0] == bound


def test_an_address_of_another_host_is_refused() -> None:
    info = replace(rank_infos(2)[0], address="192.0.2.1")
    with pytest.raises(ConfigError, match=r"has no such address. Set MASTER_ADDR to the host of"):
        listen(info)


def test_a_name_that_does_not_exist_is_refused() -> None:
    info = replace(rank_infos(2)[0], address="no-such-host.invalid")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR is 'no-such-host\.invalid', which"):
        listen(info)
