"""Generated text on stdout: safe on a terminal, byte for byte anywhere else."""

import codecs
from typing import IO, Any

from cupygpt.console.safe_text import SafeTextStream
from cupygpt.console.stream import stdout_error
from cupygpt.errors import RunError


class TextOutput:
    """Writes the bytes of a text to `stream` while they are generated.

    A terminal gets text: a character that comes in several pieces is held until it is whole, and
    nothing in it controls the terminal. A file or a pipe gets exactly the bytes, valid UTF-8 or
    not. A stream that takes no bytes (of a notebook) gets text as well.

    All methods raise RunError if the stream cannot be written to, and BrokenPipeError if it is a
    pipe that its reader has closed.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self._buffer = None if self.is_terminal else getattr(stream, "buffer", None)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._safe = SafeTextStream()

    def write(self, data: bytes) -> None:
        """The next bytes of the text."""
        if self._buffer is not None:
            self._put(self._buffer, data)
        else:
            self._put(self._stream, self._as_text(self._utf8.decode(data)))

    def end(self) -> None:
        """Write what is held back; the next bytes start a new text."""
        rest = self._as_text(self._utf8.decode(b"", final=True))
        self._put(self._stream, rest + self._safe.flush())
        self._utf8.reset()

    def line(self, text: str) -> None:
        """A line that does not belong to the text."""
        self.write(f"{text}\n".encode())

    def _as_text(self, text: str) -> str:
        return self._safe.feed(text) if self.is_terminal else text

    def _put(self, stream: IO[Any], data: str | bytes) -> None:
        try:
            stream.write(data)
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise RunError(stdout_error(error)) from error
