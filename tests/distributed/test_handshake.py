"""Rank 0 accepts a connection only if both ends prove the key, whatever is sent instead."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from cupygpt.distributed.handshake import GREETING, MAX_BYTES, Guest, Identity, _proof, introduce
from cupygpt.distributed.messages import Closed, MessageSocket

IDENTITY = Identity(kind="control", rank=1, world=2, host="a host", version="1")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection: rank 0's, and that of the process that connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        rank0, _ = server.accept()
    yield rank0, other
    rank0.close()
    other.close()


Ends = tuple[socket.socket, socket.socket]


def identify(rank0: socket.socket, key: str) -> Identity | None:
    """What rank 0 hears from a guest in the end."""
    guest = Guest(MessageSocket(rank0), key)
    deadline = time.monotonic() + 2.0
    try:
        while time.monotonic() < deadline:
            identity = guest.hear()
            if identity is not None:
                return identity
            time.sleep(0.001)
    except Closed:
        return None
    finally:
        guest.connection.close()
    raise AssertionError("nothing was decided within 2 s")


def identify_in_thread(rank0: socket.socket, key: str, results: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: results.append(identify(rank0, key)))
    thread.start()
    return thread


def test_both_ends_with_the_same_key_accept_each_other(ends: Ends) -> None:
    results: list[Any] = []
    thread = identify_in_thread(ends[0], "a key", results)
    introduce(MessageSocket(ends[1]), "a key", IDENTITY, 2.0)
    thread.join()
    assert results == [IDENTITY]


def test_a_process_refuses_a_rank_0_with_another_key(ends: Ends) -> None:
    results: list[Any] = []
    thread = identify_in_thread(ends[0], "a key", results)
    other = MessageSocket(ends[1])
    with pytest.raises(Closed, match=r"has another key.*CUPYGPT_KEY"):
        introduce(other, "another key", IDENTITY, 2.0)
    other.close()
    thread.join()
    assert results == [None]


@pytest.mark.parametrize("proof", ["0" * 64, "ä", "\ud800", 7, None, "that of rank 0"])
def test_rank_0_refuses_an_identity_without_the_right_proof(ends: Ends, proof: Any) -> None:
    """Also its own proof, sent back to it."""
    results: list[Any] = []
    thread = identify_in_thread(ends[0], "a key", results)
    other = MessageSocket(ends[1])
    other.send({"greeting": GREETING, "nonce": "5"})
    answer = other.receive(2.0)
    sent = answer["proof"] if proof == "that of rank 0" else proof
    other.send({**asdict(IDENTITY), "proof": sent})
    thread.join()
    assert results == [None]


def test_a_proof_is_worthless_on_another_connection(ends: Ends) -> None:
    """What a rank sent once does not let anyone else in who saw it."""
    seen: list[Any] = []

    class Recorder(MessageSocket):
        def send(self, message: Any) -> None:
            seen.append(message)
            super().send(message)

    results: list[Any] = []
    thread = identify_in_thread(ends[0], "a key", results)
    introduce(Recorder(ends[1]), "a key", IDENTITY, 2.0)
    thread.join()
    assert results.pop() == IDENTITY
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        rank0, _ = server.accept()
    thread = identify_in_thread(rank0, "a key", results)
    with other:
        for message in seen:
            MessageSocket(other).send(message)
        thread.join()
    assert results == [None]


def frame(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        frame(b"null"),
        frame(b"[" * MAX_BYTES),
        frame(b"\xff\xfe"),
        frame(json.dumps({"greeting": "cupygpt ranks, protocol 1", "nonce": "5"}).encode()),
        struct.pack("<Q", MAX_BYTES + 1),
    ],
)
def test_other_protocols_are_refused_at_once(ends: Ends, sent: bytes) -> None:
    results: list[Any] = []
    started = time.monotonic()
    thread = identify_in_thread(ends[0], "a key", results)
    ends[1].sendall(sent)
    thread.join()
    assert results == [None]
    assert time.monotonic() - started < 1.0


NESTED = json.loads("[" * 300 + "]" * 300)


@pytest.mark.parametrize(
    "hello",
    [
        {},
        {"greeting": GREETING},
        {"greeting": GREETING, "nonce": 5},
        {"greeting": GREETING, "nonce": NESTED},
        {"greeting": [GREETING], "nonce": "5"},
        {"greeting": GREETING, "nonce": "5", "more": 1},
        [GREETING, "5"],
    ],
)
def test_a_greeting_with_other_fields_is_refused(ends: Ends, hello: Any) -> None:
    results: list[Any] = []
    thread = identify_in_thread(ends[0], "a key", results)
    MessageSocket(ends[1]).send(hello)
    thread.join()
    assert results == [None]


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": "1"}, {"rank": True}, {"rank": None}, {"rank": 1.0}, {"rank": NESTED},
        {"kind": "another"}, {"kind": ["control"]}, {"host": 7}, {"host": None}, {"more": 1},
    ],
)  # fmt: skip
def test_an_identity_with_other_fields_is_refused_even_with_the_right_proof(
    ends: Ends, changes: dict[str, Any]
) -> None:
    """So a rank of another version, or somebody who guessed the key, cannot stop rank 0."""
    results: list[Any] = []
    thread = identify_in_thread(ends[0], "a key", results)
    other = MessageSocket(ends[1])
    other.send({"greeting": GREETING, "nonce": "5"})
    answer = other.receive(2.0)
    said = {**asdict(IDENTITY), **changes}
    said = {name: value for name, value in said.items() if value is not None}
    other.send({**said, "proof": _proof("a key", "another rank", ["5", answer["nonce"], said])})
    thread.join()
    assert results == [None]


def test_a_silent_rank_0_is_given_up_in_time(ends: Ends) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        introduce(MessageSocket(ends[1]), "a key", IDENTITY, 0.2)
    assert time.monotonic() - started < 1.0
