"""Everything a person sees of a run: a live bar on a terminal, plain lines anywhere else.

The plain lines are a file format: people search them with grep. Rich's progress columns write
other forms ("0:00:05", not "0:05") and only in a live bar, so the numbers are formatted here.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import IO

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cupygpt.console.bar import Shown, StepFigures, StepLine, VisibleCursor, draw_bar
from cupygpt.console.figures import duration_words
from cupygpt.console.notebook import NotebookBar
from cupygpt.console.safe_text import safe_text
from cupygpt.console.stream import SafeStream, draws_bar, say, stdout_error

COMMAND = "python -m "
LABEL_WIDTH = 12
SAMPLE_WIDTH, SAMPLE_LINES = 100, 8
"""The largest sample that a terminal shows."""


class Console:
    """Prints a run, on `stream` or stdout. Printing never fails, and never stops the run.

    `terminal` says whether a bar is drawn; None asks the stream. A `notebook` shows its bar beside
    the lines, instead of those of the steps. `clock` gives seconds. `memory` gives the bytes in use
    and is called only when they are shown.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        *,
        terminal: bool | None = None,
        notebook: NotebookBar | None = None,
        width: int | None = None,
        log_every: int = 10,
        clock: Callable[[], float] = time.perf_counter,
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self.live_mode = draws_bar(stream, os.environ) if terminal is None else terminal
        self._stream = SafeStream(stream, self._tell_of_error)
        self._rich = VisibleCursor(
            file=self._stream,  # type: ignore[arg-type]
            force_terminal=self.live_mode,
            force_jupyter=False,
            force_interactive=self.live_mode,
            width=width,
            highlight=False,
        )
        self._notebook = notebook
        self._log_every = log_every
        self._clock = clock
        self.memory = memory
        self._live: Live | None = None
        self._first_step = 0
        self._started = 0.0
        self._figures = StepFigures(0)
        self._latest: Shown | None = None
        self._saved: int | None = None
        self._stopping: str | None = None

    @property
    def reader_gone(self) -> bool:
        """Whether the output is a pipe that its reader has closed: nobody sees the run any more."""
        return self._stream.reader_gone

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        """The table at the start of a run: rows of label and text."""
        if not self.live_mode:
            for label, text in rows:
                self._line(f"{label:<{LABEL_WIDTH}} {text}")
            return
        table = Table.grid(padding=(0, 1))
        table.add_column(style="bold", width=LABEL_WIDTH)
        table.add_column(overflow="fold")
        for label, text in rows:
            table.add_row(label, Text(text))
        self._rich.print(table)

    def note(self, text: str) -> None:
        """A line of information."""
        self._line(text)

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self._line(f"warning: {text}", style="yellow")

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """A line that counts up while something is prepared, and then shows how long it took."""
        started = self._clock()
        with Live(console=self._rich, transient=True) if self.live_mode else nullcontext() as live:

            def show(done: int, total: int) -> None:
                if live is not None:
                    live.update(Text(f"{text}: {done} of {total}", style="dim"))

            yield show
        self._line(f"{text}: {self._clock() - started:.1f} s", style="dim")

    def start(self, first_step: int, total_steps: int) -> None:
        """The loop begins after `first_step` of `total_steps` steps."""
        self._first_step = first_step
        self._figures = StepFigures(total_steps)
        self._started = self._clock()
        if self.live_mode:
            # A timer draws the latest step, so that a step costs no time for drawing.
            self._live = Live(
                console=self._rich, refresh_per_second=8, transient=True, get_renderable=self._bar
            )
            self._live.start()
        self._draw_in_notebook()

    def set_total(self, total_steps: int) -> None:
        """The run has so many steps: a run of so many minutes has measured how many fit."""
        self._figures.total_steps = total_steps

    def step(self, line: StepLine) -> None:
        """One finished optimizer step."""
        self._latest = self._figures.add(line, self._clock())
        self._draw_in_notebook()
        if self._live or self._notebook:
            return
        if line.step % self._log_every == 0 or line.step in (
            self._first_step + 1,
            self._figures.total_steps,
        ):
            self._line(self._plain(self._latest))

    def validation(
        self,
        step: int,
        loss: float,
        bits_per_byte: float | None,
        *,
        best: bool,
        reference: float | None = None,
    ) -> None:
        """A validation loss, in nats per token and bits per byte; the reference run's, if known."""
        bits = f" | {bits_per_byte:.4f} bits/byte" if bits_per_byte is not None else ""
        known = f" | reference {reference:.4f}" if reference is not None else ""
        mark = " | best so far" if best else ""
        line = f"step {step:>{self._digits}} | validation loss {loss:.4f}{bits}{known}{mark}"
        self._line(line, style="green")

    def evaluation(self, step: int, text: str) -> None:
        """How many questions were answered rightly."""
        self._line(f"step {step:>{self._digits}} | {text}", style="green")

    def sample(self, step: int, text: str) -> None:
        """Text that the model wrote; a terminal shows the first lines of it."""
        shown = safe_text(text.replace("\r\n", "\n"))
        if not self.live_mode:
            self._line(f"--- sample at step {step} ---\n{shown}\n---")
            return
        width = min(SAMPLE_WIDTH, self._rich.width)
        lines = Text(shown).wrap(self._rich, width - 4)  # of the panel's border
        more = "" if len(lines) <= SAMPLE_LINES else "first lines of the "
        body = Text("\n").join(lines[:SAMPLE_LINES])
        body.rstrip()
        title = f"{more}sample at step {step}"
        self._rich.print(Panel(body, title=title, title_align="left", width=width))

    def saved(self, step: int, place: str) -> None:
        """A checkpoint was written: a line, or a figure of the bar."""
        self._saved = step
        if not self.live_mode:
            self._line(f"step {step:>{self._digits}} | checkpoint saved in {place}")

    def stopping(self, text: str) -> None:
        """Show at once that a signal has come, and what follows.

        A signal handler or any thread may call this: it waits for no lock.
        """
        self._stopping = text  # the timer of the bar shows it
        if self._live is None:
            self._stream.write(f"{text}\n")

    def last_words(self, text: str) -> None:
        """Write a line below the bar just before the process ends; waits for no lock."""
        self._stream.write(f"\n{text}\n" if self._live else f"{text}\n")

    def finish(self) -> None:
        """Remove the bar; printed lines stay."""
        if self._live:
            self._live.stop()
            self._live = None
        if self._latest:
            self._draw_in_notebook(at_once=True)

    def elapsed_s(self) -> float:
        """Seconds since `start`."""
        return self._clock() - self._started

    @property
    def _digits(self) -> int:
        return max(4, len(str(self._figures.total_steps)))

    def _line(self, text: str, style: str = "") -> None:
        """A line that is not broken where grep reads it, nor where a command in it is pasted."""
        if self.live_mode:
            self._rich.print(Text(text, style=style), soft_wrap=COMMAND in text)
        else:
            self._stream.write(f"{text}\n")

    def _plain(self, shown: Shown) -> str:
        line = shown.line
        parts = [
            f"step {line.step:>{self._digits}}/{self._figures.total_steps}",
            f"epoch {line.epoch:.2f}",
            f"loss {line.loss:.4f}",
            f"norm {line.grad_norm:.4f}",
            f"lr {line.lr:.2e}",
            f"{1e3 * line.step_s:.2f} ms",
            shown.tokens_per_s,
            f"ETA {duration_words(shown.left_s)}",
        ]
        return " | ".join(parts + shown.extras(self.memory()))

    def _bar(self) -> Group:
        return draw_bar(
            self._latest,
            self._figures.total_steps,
            memory=self.memory(),
            saved=self._saved,
            stopping=self._stopping,
        )

    def _draw_in_notebook(self, *, at_once: bool = False) -> None:
        if self._notebook:
            self._notebook.draw(self._bar(), at_once=at_once)

    def _tell_of_error(self, error: Exception) -> None:
        if not self._stream.reader_gone:  # of that the loop speaks, because it ends the run
            say(f"warning: {stdout_error(error)} The run goes on without it.")
