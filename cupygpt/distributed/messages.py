"""Messages over a TCP connection: a length in 8 bytes, then that many bytes, JSON or raw.

Why this is not `multiprocessing.connection`, whose `recv_bytes(maxlength)` limits a message too:

- It cannot limit the time of a message. `poll(seconds)` waits for the first byte only, and then
  `recv_bytes` waits for the rest, however long. One byte would hold a greeting past its deadline,
  and a host that vanishes in the middle of a message would hold the watchdog for ever. A time limit
  of the socket does not help: it starts anew with every byte.
- `Listener.accept` greets inside the call, so one connection at a time and without a deadline.
- Its proof of the key is HMAC-MD5 before Python 3.12, and does not cover what the sender says about
  itself.

What arrives here is JSON or raw bytes. It is never unpickled: that would run a stranger's code.
"""

import contextlib
import json
import selectors
import socket
import struct
import threading
import time
from typing import Any

_LENGTH = struct.Struct("<Q")
MAX_MESSAGE_BYTES = 1 << 26
"""A larger length means that the bytes are not ours, but another protocol's. Whoever expects more,
an array, says how much."""
MAX_SHOWN_CHARACTERS = 2000


class Closed(ConnectionError):
    """The other side closed the connection, or it broke."""


def escaped(text: Any) -> str:
    """Text of another process as a terminal may show it: line breaks stay, the rest is escaped.

    A stranger must not be able to move the cursor, change the title or clear the screen.
    """
    shown = str(text)[:MAX_SHOWN_CHARACTERS]
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown
    )


def as_received(message: Any) -> Any:
    """What another process receives when `message` is sent: JSON makes a list of a tuple."""
    return json.loads(json.dumps(message))


class MessageSocket:
    """One end of a connection. Several threads may send, one thread at a time may receive.

    The time limit of a receive concerns that receive only: a send takes the time that it needs.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        """Send anything that JSON can hold; floats keep all their bits. Raises Closed."""
        self.send_bytes(json.dumps(message).encode())

    def receive(self, timeout_s: float | None = None, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
        """The next message; see `receive_bytes`. Raises Closed also if it is not JSON."""
        data = self.receive_bytes(timeout_s, max_bytes)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):  # not JSON, or JSON nested too deeply
            raise Closed("the other side speaks another protocol") from None

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
        the next call. With a `timeout_s` of 0 the call takes what is there and waits for nothing.
        Raises Closed if the connection ends or announces more than `max_bytes`.
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

    def fileno(self) -> int:
        """The number of the socket, for selectors; -1 when closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection; the other side sees that it ended."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _fill(self, size: int, deadline: float | None) -> None:
        """Receive until the buffer holds `size` bytes."""
        while len(self._buffer) < size:
            if deadline is not None:
                self._wait_for_bytes(deadline - time.monotonic())
            try:
                received = self._socket.recv(min(size - len(self._buffer), 1 << 20))
            except OSError as error:
                raise Closed(str(error)) from error
            if not received:
                raise Closed("the connection was closed")
            self._buffer += received

    def _wait_for_bytes(self, timeout_s: float) -> None:
        """Return when there is something to receive. Raises TimeoutError.

        The socket itself gets no time limit: it would also cut off a send of another thread, in the
        middle of a message.
        """
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self._socket, selectors.EVENT_READ)
            except ValueError:
                raise Closed("this process has closed the connection") from None
            if not selector.select(max(0.0, timeout_s)):
                raise TimeoutError("timed out")
