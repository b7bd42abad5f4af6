"""Output that cannot fail: streams that are closed, full or narrow in their characters."""

import codecs
import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable, Mapping
from io import RawIOBase
from typing import IO

REPLACEMENT = "cupygpt.replace"
"""The error handler that writes what a stream's encoding lacks in ASCII."""

_ASCII = {"×": "x", "µ": "u", "·": ".", "–": "-", "…": "...", "→": "->"}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError):
        return "\ufffd", error.end
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in lacking), error.end


codecs.register_error(REPLACEMENT, _in_ascii)


def set_up_streams() -> None:
    """Make printing safe in this process; a command calls this before it prints anything.

    What the encoding of stdout or stderr lacks is replaced. A stream that the process was started
    without (`>&-`) becomes one that swallows everything. Its number is taken as well: otherwise
    the next file that is opened would get it, and receive what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            swallow = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
            setattr(sys, name, swallow)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=REPLACEMENT)


def say(line: str) -> None:
    """Write a line to stderr, if that is possible."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def stdout_error(error: Exception) -> str:
    """What happened to stdout, in words."""
    return f"stdout cannot be written to ({getattr(error, 'strerror', None) or error})."


IPYKERNELS_CHILD = {"TERM": "xterm-color", "PAGER": "cat", "GIT_PAGER": "cat"}
"""What the kernel of a notebook sets for `!python ...`."""


def draws_bar(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Whether a bar that is drawn over and over looks like one on this stream.

    It needs a terminal that obeys cursor codes. The cells of a notebook show every drawing below
    the one before, also for `!python ...`, which gets a terminal of its own there.
    """
    in_notebook = (
        "ipykernel" in sys.modules
        or "JPY_PARENT_PID" in environ
        or IPYKERNELS_CHILD.items() <= environ.items()
    )
    if in_notebook or not stream.isatty():
        return False
    return environ.get("TERM", "") not in ("dumb", "unknown")


class SafeStream:
    """Text to another stream; what it cannot show is replaced, what it cannot take is dropped.

    `on_error` is called once, with the first error of the stream. Text is not buffered here or in
    the stream: what a full disk refused is not tried again when the process ends, and a signal
    handler may write at any moment.
    """

    def __init__(
        self, stream: IO[str], on_error: Callable[[Exception], None] = lambda _: None
    ) -> None:
        self._stream, self._on_error = stream, on_error
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.error: Exception | None = None
        """The first error of the stream."""
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

    @property
    def reader_gone(self) -> bool:
        """Whether the stream is a pipe that its reader has closed."""
        if isinstance(self.error, BrokenPipeError):
            return True
        # Windows reports it so.
        return os.name == "nt" and getattr(self.error, "errno", None) == errno.EINVAL

    def write(self, text: str) -> int:
        """Write at once; returns the number of characters of `text`."""
        if self.reader_gone:
            return len(text)
        data = text.encode(self.encoding, REPLACEMENT)
        try:
            raw = _unbuffered(self._stream)
            if raw is None:
                self._stream.write(data.decode(self.encoding))
                self._stream.flush()
            else:
                _write_all(raw, data)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed in Python
            if self.error is None:
                self.error = error
                self._on_error(error)
        return len(text)

    def flush(self) -> None:
        """Does nothing: every write is passed on at once."""

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return self._stream.fileno()


def _unbuffered(stream: IO[str]) -> RawIOBase | None:
    """The file below the buffers of a stream of the system; None for any other stream."""
    if os.name == "nt":  # there the text layer turns \n into \r\n
        return None
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, RawIOBase) else None


def _write_all(raw: RawIOBase, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        count = raw.write(rest)
        if count is None:  # another program has made the stream non-blocking; it is full now
            select.select([], [raw], [])
            continue
        rest = rest[count:]
