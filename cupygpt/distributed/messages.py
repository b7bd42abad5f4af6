"""Messages over a TCP connection: a length, then that many bytes, JSON or raw."""

import contextlib
import json
import socket
import struct
import threading
from typing import Any

_LENGTH = struct.Struct("<Q")
MAX_MESSAGE_BYTES = 1 << 34
"""Above this a length is not one of ours, but the first bytes of another protocol."""


class Closed(ConnectionError):
    """The other side closed the connection, or it broke."""


class Wire:
    """One connection. Sending may happen on several threads, receiving on one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        """Send anything JSON can hold; floats arrive as the same bits."""
        self.send_bytes(json.dumps(message).encode())

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message. TimeoutError after `timeout_s`, and what came so far is kept."""
        return json.loads(self.receive_bytes(timeout_s))

    def send_bytes(self, data: bytes | memoryview) -> None:
        """Send raw bytes as one message. Raises Closed."""
        try:
            with self._lock:
                self._socket.sendall(_LENGTH.pack(len(data)))
                self._socket.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def receive_bytes(self, timeout_s: float | None = None) -> bytes:
        """The next message as it came. Raises TimeoutError and Closed."""
        self._fill(_LENGTH.size, timeout_s)
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_MESSAGE_BYTES:
            raise Closed("the other side speaks another protocol")
        self._fill(_LENGTH.size + length, timeout_s)
        message = bytes(memoryview(self._buffer)[_LENGTH.size : _LENGTH.size + length])
        del self._buffer[: _LENGTH.size + length]
        return message

    def close(self) -> None:
        """Close the connection; the other side sees its end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _fill(self, size: int, timeout_s: float | None) -> None:
        while len(self._buffer) < size:
            try:
                self._socket.settimeout(timeout_s)
                chunk = self._socket.recv(min(size - len(self._buffer), 1 << 20))
            except TimeoutError:
                raise
            except OSError as error:
                raise Closed(str(error)) from error
            if not chunk:
                raise Closed("the connection was closed")
            self._buffer += chunk
