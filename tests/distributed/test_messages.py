"""Messages arrive whole, and a time limit concerns one receive only."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cupygpt.distributed.messages import Closed, MessageSocket, escaped

LONG = bytes(range(256)) * (1 << 16)
"""More than the buffers of both ends hold: sending it waits for the receiver."""

Ends = tuple[MessageSocket, MessageSocket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname(), timeout=0.1)
        there, _ = server.accept()
    both = MessageSocket(here), MessageSocket(there)
    yield both
    for end in both:
        end.close()


def receive_late(end: MessageSocket, received: list[bytes]) -> threading.Thread:
    """Receive one message, after a pause in which its sender has to wait."""

    def run() -> None:
        time.sleep(0.4)
        received.append(end.receive_bytes())

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_receive_that_timed_out_does_not_limit_a_later_send(ends: Ends) -> None:
    with pytest.raises(TimeoutError):
        ends[0].receive(0.05)
    received: list[bytes] = []
    thread = receive_late(ends[1], received)
    ends[0].send_bytes(LONG)
    thread.join()
    assert received == [LONG]


def test_a_receive_does_not_limit_a_send_of_another_thread(ends: Ends) -> None:
    received: list[bytes] = []
    receiver = receive_late(ends[1], received)
    sender = threading.Thread(target=ends[0].send_bytes, args=(LONG,))
    sender.start()
    while sender.is_alive():
        with pytest.raises(TimeoutError):
            ends[0].receive(0.05)
    sender.join()
    ends[0].send("the next message")
    receiver.join()
    assert received == [LONG]
    assert ends[1].receive(1.0) == "the next message"


def test_what_arrived_before_a_time_limit_is_kept(ends: Ends) -> None:
    ends[0]._socket.sendall(b"\5\0\0\0\0\0\0\0" + b"[1,")
    with pytest.raises(TimeoutError):
        ends[1].receive(0.05)
    ends[0]._socket.sendall(b"2]")
    assert ends[1].receive(1.0) == [1, 2]


def test_a_connection_that_this_process_closed_is_closed(ends: Ends) -> None:
    ends[0].close()
    with pytest.raises(Closed):
        ends[0].receive(0.05)
    with pytest.raises(Closed):
        ends[1].receive(0.05)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NAN}'])
def test_what_is_not_json_closes_the_connection(ends: Ends, data: bytes) -> None:
    ends[0].send_bytes(data)
    with pytest.raises(Closed, match="speaks another protocol"):
        ends[1].receive(1.0)


def test_a_length_that_is_too_large_is_not_waited_for(ends: Ends) -> None:
    ends[0]._socket.sendall((1 << 33).to_bytes(8, "little"))
    with pytest.raises(Closed, match="speaks another protocol"):
        ends[1].receive()


def test_text_of_others_is_shown_without_control_characters() -> None:
    assert escaped("Grüße\n\x1b[31m\x9b\ud800") == "Grüße\n\\x1b[31m\\x9b\\ud800"
    assert len(escaped("x" * 100_000)) < 10_000
