"""Strangers at the port of rank 0 change nothing in a run: not its logs, weights or exit codes."""

import contextlib
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.rank_runs import as_ranks, finish, start, wait_for
from support.small_runs import main_log, write_files

from cupygpt.distributed.handshake import GREETING
from cupygpt.distributed.launcher_env import LOOPBACK
from cupygpt.distributed.messages import MessageSocket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks on one host, by signals")

Stranger = Callable[[socket.socket], object]


def frame(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def says(data: bytes) -> Stranger:
    return lambda connection: connection.sendall(data)


def says_json(*messages: object) -> Stranger:
    return says(b"".join(frame(json.dumps(message).encode()) for message in messages))


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def sends_back_what_it_hears(connection: socket.socket) -> None:
    """Rank 0's own proof, as that of rank 1."""
    says_json(HELLO)(connection)
    answer = MessageSocket(connection).receive(5.0)
    says_json({**RANK_1, "proof": answer["proof"]})(connection)


class RunsWhenUnpickled:
    """What makes `Connection.recv` of multiprocessing dangerous."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["STRANGER_WAS_HERE"],)


def sends_a_pickle(connection: socket.socket) -> None:
    data = pickle.dumps(RunsWhenUnpickled())
    connection.sendall(struct.pack("!i", len(data)) + data + frame(data))


HELLO = {"greeting": GREETING, "nonce": "00"}
RANK_1 = {"kind": "control", "rank": 1, "world": 2, "host": "\x1b[2J", "version": "0.1.0"}
NESTED = b'{"greeting": "' + GREETING.encode() + b'", "nonce": ' + b"[" * 900 + b"]" * 900 + b"}"

STRANGERS: dict[str, Stranger] = {
    "nothing": says(b""),
    "nothing, and closes": lambda connection: connection.close(),
    "nothing, and closes its half": lambda connection: connection.shutdown(socket.SHUT_WR),
    "a reset": resets,
    "a byte": says(b"\0"),
    "HTTP": says(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "TLS": says(bytes.fromhex("1603010200010001fc0303") + bytes(500)),
    "SSH": says(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a length of 2^33": says(struct.pack("<Q", 1 << 33) + b"x" * 5000),
    "a length of 2^64 - 1": says(b"\xff" * 8),
    "a length of 0": says(bytes(8)),
    "half a message": says(struct.pack("<Q", 4000) + b'{"greeting"'),
    "not UTF-8": says(frame(b"\xff\xfe\x00")),
    "100,000 brackets": says(frame(b"[" * 100_000)),
    "4,000 brackets": says(frame(b"[" * 4000)),
    "a greeting with a deep nonce": says(frame(NESTED)),
    "null": says_json(None),
    "a number": says_json(float("nan")),
    "a list": says_json([1, 2]),
    "no fields": says_json({}),
    "no nonce": says_json({"greeting": GREETING}),
    "an old protocol": says_json({"greeting": "cupygpt ranks, protocol 1", "nonce": "00"}),
    "a greeting, then nothing": says_json(HELLO),
    "a greeting, then no fields": says_json(HELLO, {}),
    "a greeting, then no proof": says_json(HELLO, RANK_1),
    "a greeting, then a wrong proof": says_json(HELLO, {**RANK_1, "proof": "0" * 64}),
    "a greeting, then rank 0's proof": sends_back_what_it_hears,
    "a rank without a greeting": says_json({**RANK_1, "proof": "0" * 64}),
    "a failure with code 0": says_json({"failed": "\x1b]0;owned\x07", "code": 0, "rank": 1}),
    "a goodbye": says_json("bye"),
    "a pickle": sends_a_pickle,
    "a challenge of multiprocessing": says(b"\0\0\0\x1f#CHALLENGE#" + bytes(20)),
    "64 KiB of noise": says(bytes(range(256)) * 256),
}


class Crowd:
    """All strangers, who come again and again until it is closed, and stay as long as they may."""

    def __init__(self, port: int) -> None:
        self.missed = 0  # visits that found nobody
        self._port = port
        self._connections: list[socket.socket] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._come_again)

    def come(self) -> None:
        """Every stranger connects once, and those who stay send another byte."""
        for stranger in STRANGERS.values():
            try:
                connection = socket.create_connection((LOOPBACK, self._port), timeout=5.0)
            except ConnectionRefusedError:
                self.missed += 1
                continue
            self._connections.append(connection)
            with contextlib.suppress(OSError):  # rank 0 has closed before all is sent
                stranger(connection)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(b" ")

    def _come_again(self) -> None:
        while not self._is_over.wait(0.05):
            self.come()

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()


def someone_listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port)).close()
    except ConnectionRefusedError:
        return False
    return True


def succeed(ranks: "list[subprocess.Popen[str]]") -> None:
    for rank in ranks:
        code, _, err = finish(rank)
        assert (code, err) == (0, "")


def test_strangers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come before rank 1, together with it, and as long as the run lasts."""
    assert len(STRANGERS) >= 20
    monkeypatch.setenv("STRANGER_WAS_HERE", str(tmp_path / "was-here"))
    flags = [*write_files(tmp_path), "-n", "30", "-z", "1"]
    alone, disturbed = tmp_path / "alone", tmp_path / "disturbed"
    succeed([start(*flags, "-o", str(alone), **environ) for environ in as_ranks(2)])
    first, second = as_ranks(2)
    port = int(first["MASTER_PORT"])
    rank0 = start(*flags, "-o", str(disturbed), **first)
    wait_for(lambda: someone_listens(port), rank0)
    crowd = Crowd(port)
    crowd.come()
    assert crowd.missed == 0
    with crowd:
        succeed([start(*flags, "-o", str(disturbed), **second), rank0])
    assert crowd.missed >= len(STRANGERS)  # while the run computes, nobody listens
    assert main_log(disturbed) == main_log(alone)
    names = {file.name for file in alone.glob("*_000000*")}
    assert len(names) >= 4
    assert names == {file.name for file in disturbed.glob("*_000000*")}
    for name in names:
        assert (disturbed / name).read_bytes() == (alone / name).read_bytes(), name
    assert not (tmp_path / "was-here").exists()
