"""Ctrl-C and SIGTERM end a run between two steps, after a checkpoint; a second one at once."""

import math
import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from cupygpt.cli import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While active, the first signal sets `received`; the second ends the process.

    A second one within `echo_s` seconds counts as the first: launchers pass on what a terminal has
    sent to all processes already.
    """

    def __init__(self, *, echo_s: float = 0.0) -> None:
        self.received: str | None = None
        self._echo_s = echo_s
        self._received_at = -math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if time.monotonic() - self._received_at < self._echo_s:
            return
        if self.received:
            # A write in progress leaves a .partial file; what was saved before stays complete.
            os._exit(INTERRUPTED)
        self.received = signal.Signals(number).name
        self._received_at = time.monotonic()
