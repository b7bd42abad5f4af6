"""Signals: Ctrl-C, SIGTERM and SIGHUP end a run after a checkpoint, a second one ends it at once.

SIGUSR1 asks for a checkpoint, and the run goes on; Slurm can send it before the time is over.
"""

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Protocol

_ENDING = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]
_SAVING = [getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name)]


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """In the block SIGTERM and SIGHUP raise SystemExit, so that a start cleans up, as at Ctrl-C."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [
        number
        for number in _ENDING
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL
    ]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Speaker(Protocol):
    """What a signal needs of the console: two methods that any thread may call at any moment."""

    def stopping(self, text: str) -> None:
        """Show at once that a signal has come."""

    def last_words(self, text: str) -> None:
        """Write a line just before the process ends."""


class StopRequest(Protocol):
    """What a run asks between two steps: the signal that ends it, and how many asked to save."""

    received: str | None
    saves_asked: int


class StopSignal:
    """While active, the first signal sets `received`, and the second ends the process.

    Both are acknowledged at once on the `console`, even while a long call keeps the main thread
    from running Python: a thread of its own reads the signals. A second signal within `echo_s`
    seconds counts as the first: launchers pass on what a terminal has sent to all processes
    already. SIGHUP stays ignored where it was (nohup). `saves_asked` counts SIGUSR1.
    """

    def __init__(self, console: Speaker | None = None, *, echo_s: float = 0.0) -> None:
        self.received: str | None = None
        self.saves_asked = 0
        self._console, self._echo_s = console, echo_s
        self._received_at = -math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        self._read_end, self._write_end = socket.socketpair()
        self._write_end.settimeout(0)
        self._previous_fd = signal.set_wakeup_fd(
            self._write_end.fileno(), warn_on_full_buffer=False
        )
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        for number in (*_ENDING, *_SAVING):
            if number == getattr(signal, "SIGHUP", None) and (
                signal.getsignal(number) == signal.SIG_IGN
            ):
                continue
            # Python writes the number to the socket; the handler itself has nothing to do.
            self._previous[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._write_end.close()  # ends the thread, after what was sent before
        self._thread.join()
        self._read_end.close()

    def _listen(self) -> None:
        while numbers := self._read_end.recv(16):
            for number in numbers:
                if number in _SAVING:
                    self.saves_asked += 1
                elif number in _ENDING:
                    self._stop(number)

    def _stop(self, number: int) -> None:
        now = time.monotonic()
        if now - self._received_at < self._echo_s:
            return
        if self.received:
            # A write in progress leaves a .partial file; what was saved before stays complete.
            self._say("last_words", "ended at once, without saving; earlier checkpoints stay.")
            os._exit(128 + number)
        self._received_at = now
        self.received = signal.Signals(number).name
        name = "Ctrl-C" if number == signal.SIGINT else self.received
        self._say(
            "stopping",
            f"{name}: the run ends after this step, with a checkpoint. A second {name} ends it at "
            f"once, without saving.",
        )

    def _say(self, method: str, text: str) -> None:
        if self._console is not None:
            getattr(self._console, method)(text)
