"""Ctrl-C and SIGTERM end a run between two steps, after a checkpoint; a second one at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from cupygpt.cli import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While active, the first signal sets `received`; the second ends the process."""

    def __init__(self) -> None:
        self.received: str | None = None
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
        if self.received:
            # A write in progress leaves a .partial file; what was saved before stays complete.
            os._exit(INTERRUPTED)
        self.received = signal.Signals(number).name
