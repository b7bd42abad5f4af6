"""Messages over a TCP connection: a length in 8 bytes, then that many bytes, JSON or raw.

`multiprocessing.connection` sends messages too, but cannot limit the time of one: after the first
byte it waits for the rest, however long that takes. A port scanner would then block rank 0 while
the ranks connect, and a host that vanishes would block the watchdog.
"""

import contextlib
import json
import socket
import struct
import threading
import time
from typing import Any

_LENGTH = struct.Struct("<Q")
MAX_MESSAGE_BYTES = 1 << 34
"""A larger length is not one of ours, but the first bytes of another protocol."""


class Closed(ConnectionError):
    """The other side closed the connection, or it broke."""


class MessageSocket:
    """One end of a connection. Several threads may send, one thread at a time may receive."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        """Send anything that JSON can hold; floats keep all their bits. Raises Closed."""
        self.send_bytes(json.dumps(message).encode())

    def receive(self, timeout_s: float | None = None, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
        """The next message; see `receive_bytes`. Raises ValueError if it is not JSON."""
        return json.loads(self.receive_bytes(timeout_s, max_bytes))

    def send_bytes(self, data: bytes | memoryview) -> None:
        """Send raw bytes as one message. Raises Closed."""
        try:
            with self._lock:
                self._socket.sendall(_LENGTH.pack(len(data)))
                self._socket.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def receive_bytes(
        self, timeout_s: float | None = None, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> bytes:
        """The next message as raw bytes.

        Raises TimeoutError if it is not complete after `timeout_s`; what has arrived is kept for
        the next call. Raises Closed if the connection ends or announces more than `max_bytes`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._fill(_LENGTH.size, deadline)
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > max_bytes:
            raise Closed("the other side speaks another protocol")
        self._fill(_LENGTH.size + length, deadline)
        message = bytes(memoryview(self._buffer)[_LENGTH.size : _LENGTH.size + length])
        del self._buffer[: _LENGTH.size + length]
        return message

    def close(self) -> None:
        """Close the connection; the other side sees that it ended."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _fill(self, size: int, deadline: float | None) -> None:
        """Receive until the buffer holds `size` bytes."""
        while len(self._buffer) < size:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("timed out")
            try:
                self._socket.settimeout(left)
                chunk = self._socket.recv(min(size - len(self._buffer), 1 << 20))
            except TimeoutError:
                raise
            except OSError as error:
                raise Closed(str(error)) from error
            if not chunk:
                raise Closed("the connection was closed")
            self._buffer += chunk
