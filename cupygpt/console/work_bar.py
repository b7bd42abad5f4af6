"""How far long work on files has come: a bar on a terminal, a line now and then anywhere else."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cupygpt.console.bar import VisibleCursor
from cupygpt.console.figures import duration_words
from cupygpt.console.stream import SafeStream, draws_bar

FIRST_LINE_S, LINES_S = 1.0, 10.0
"""When the first line appears without a terminal, and how long it is until the next one."""

MB = 1e6


class Show(Protocol):
    """Takes how many bytes are done."""

    def __call__(self, done: int, *, new: bool = True) -> None:
        """`new`: they were done now, not by an earlier run."""


class WorkBar:
    """Shows stages of work whose size is known in bytes, on `stream` or stdout.

    `terminal` says whether a bar is drawn; None asks the stream. `clock` gives seconds.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self._live_mode = draws_bar(stream, os.environ) if terminal is None else terminal
        self._stream, self._clock = SafeStream(stream), clock
        self._what, self._total, self._done, self._before = "", 0, 0, 0
        self._started = self._next_line = 0.0

    @contextmanager
    def stage(self, what: str, total: int = 0) -> Iterator[Show]:
        """A stage of `total` bytes, 0 if that is unknown; yields what is to be told the bytes done.

        What is told with `new=False` was done in an earlier run, and does not count for the speed.
        The bar is gone when the stage ends.
        """
        self._what, self._total, self._done, self._before = what, total, 0, 0
        self._started = self._clock()
        self._next_line = self._started + FIRST_LINE_S
        if not self._live_mode:
            yield self._show
            return
        console = VisibleCursor(
            file=self._stream,  # type: ignore[arg-type]
            force_terminal=True,
            highlight=False,
        )
        with Live(
            console=console, refresh_per_second=8, transient=True, get_renderable=self._draw
        ) as live:
            live.refresh()
            yield self._show

    def _show(self, done: int, *, new: bool = True) -> None:
        self._done = done
        if not new:
            self._before, self._started = done, self._clock()
        elif not self._live_mode and self._clock() >= self._next_line:
            self._next_line = self._clock() + LINES_S
            self._stream.write(f"{self._what}: {self._amount()} | {self._speed()}\n")

    def _amount(self) -> str:
        if not self._total:
            return f"{self._done / MB:,.1f} MB"
        return f"{self._done / MB:,.1f} of {self._total / MB:,.1f} MB"

    def _speed(self) -> str:
        seconds = self._clock() - self._started
        rate = (self._done - self._before) / seconds if seconds > 0 else 0.0
        words = f"{rate / MB:.1f} MB/s"
        if not self._total or rate <= 0:
            return words
        return f"{words} | ETA {duration_words((self._total - self._done) / rate)}"

    def _draw(self) -> Table:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=self._total or None, completed=self._done)
        figures = f"{self._amount()}  {self._speed()}" if self._total or self._done else ""
        row.add_row(Text(self._what), bar, Text(figures))
        return row
