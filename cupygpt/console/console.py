"""Everything a person sees of a run: a live bar on a terminal, plain lines anywhere else.

The plain lines are a file format: people search them with grep. Rich's progress columns write
other forms ("0:00:05", not "0:05") and only in a live bar, so the numbers are formatted here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cupygpt.console.figures import SmoothedMean, count_words, duration_words, format_bytes
from cupygpt.console.safe_text import printable

PLAIN_WIDTH = 100
LABEL_WIDTH = 12


@dataclass(frozen=True)
class StepLine:
    """What is shown of one optimizer step; `step` counts finished steps, from 1.

    `loss` in nats per token, `lr` the learning rate, `grad_norm` before clipping, `step_s` seconds,
    `tokens` of all ranks together, `mfu` the share of the GPU's peak rate, None if that is unknown.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    step_s: float
    tokens: int
    mfu: float | None = None


class Console:
    """Prints a run.

    `terminal` says whether the stream is one; None asks the stream. `clock` gives seconds. `memory`
    gives the bytes in use and is called only when they are shown.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        *,
        terminal: bool | None = None,
        width: int | None = None,
        log_every: int = 10,
        clock: Callable[[], float] = time.perf_counter,
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._rich = RichConsole(
            file=stream, force_terminal=terminal, width=width, highlight=False, soft_wrap=False
        )
        self.live_mode = self._rich.is_terminal
        if not self.live_mode and width is None:
            self._rich.width = PLAIN_WIDTH
        self._log_every = log_every
        self._clock = clock
        self.memory = memory
        self._live: Live | None = None
        self._total_steps, self._first_step = 0, 0
        self._started = 0.0
        self._loss = SmoothedMean()
        self._step_s = SmoothedMean()
        self._latest: _Shown | None = None

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        """The table at the start of a run: rows of label and text."""
        table = Table.grid(padding=(0, 1))
        table.add_column(style="bold", width=LABEL_WIDTH)
        table.add_column(overflow="fold")
        for label, text in rows:
            table.add_row(label, Text(text))
        self._rich.print(table)

    def note(self, text: str) -> None:
        """A line of information."""
        self._line(Text(text))

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self._line(Text(f"warning: {text}", style="yellow"))

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """A line that counts up while something is prepared, and then shows how long it took."""
        started = self._clock()
        with Live(console=self._rich, transient=True) if self.live_mode else nullcontext() as live:

            def show(done: int, total: int) -> None:
                if live is not None:
                    live.update(Text(f"{text}: {done} of {total}", style="dim"))

            yield show
        self._line(Text(f"{text}: {self._clock() - started:.1f} s", style="dim"))

    def start(self, first_step: int, total_steps: int) -> None:
        """The loop begins after `first_step` of `total_steps` steps."""
        self._first_step, self._total_steps = first_step, total_steps
        self._started = self._clock()
        if self.live_mode:
            # A timer draws the latest step, so that a step costs no time for drawing.
            self._live = Live(
                console=self._rich, refresh_per_second=8, transient=True, get_renderable=self._bar
            )
            self._live.start()

    def step(self, line: StepLine) -> None:
        """One finished optimizer step."""
        self._latest = _Shown(line, self._loss.add(line.loss), self._step_s.add(line.step_s))
        if self._live:
            return
        if line.step % self._log_every == 0 or line.step in (
            self._first_step + 1,
            self._total_steps,
        ):
            self._line(Text(self._plain(self._latest)))

    def validation(
        self, step: int, loss: float, bits_per_byte: float | None, *, best: bool
    ) -> None:
        """A validation loss, in nats per token and bits per byte."""
        bits = f" | {bits_per_byte:.4f} bits/byte" if bits_per_byte is not None else ""
        mark = " | best so far" if best else ""
        line = f"step {step:>{self._digits}} | validation loss {loss:.4f}{bits}{mark}"
        self._line(Text(line, style="green"))

    def sample(self, step: int, text: str) -> None:
        """Text that the model wrote."""
        shown = printable(text)
        if self.live_mode:
            self._rich.print(Panel(Text(shown), title=f"sample at step {step}", title_align="left"))
        else:
            self._line(Text(f"--- sample at step {step} ---"))
            self._line(Text(shown))
            self._line(Text("---"))

    def saved(self, step: int, place: str) -> None:
        """A checkpoint was written."""
        self._line(Text(f"step {step:>{self._digits}} | checkpoint saved in {place}", style="dim"))

    def finish(self) -> None:
        """Remove the bar; printed lines stay."""
        if self._live:
            self._live.stop()
            self._live = None

    def elapsed_s(self) -> float:
        """Seconds since `start`."""
        return self._clock() - self._started

    @property
    def _digits(self) -> int:
        return max(4, len(str(self._total_steps)))

    def _line(self, text: Text) -> None:
        # Long lines wrap on a terminal, but stay whole in a file, for grep.
        self._rich.print(text, soft_wrap=not self.live_mode)

    def _plain(self, shown: "_Shown") -> str:
        line = shown.line
        parts = [
            f"step {line.step:>{self._digits}}/{self._total_steps}",
            f"epoch {line.epoch:.2f}",
            f"loss {line.loss:.4f}",
            f"norm {line.grad_norm:.4f}",
            f"lr {line.lr:.2e}",
            f"{1e3 * line.step_s:.2f} ms",
            f"{count_words(line.tokens / shown.step_s)} tok/s",
            f"ETA {duration_words(self._eta_s(line.step))}",
        ]
        return " | ".join(parts + self._extras(line))

    def _bar(self) -> RenderableType:
        if self._latest is None:
            return Text("first step ...", style="dim")
        line = self._latest.line
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            f"step {line.step}/{self._total_steps}",
            ProgressBar(total=self._total_steps, completed=line.step),
            f"epoch {line.epoch:.2f}  ETA {duration_words(self._eta_s(line.step))}",
        )
        figures = [
            f"[bold]loss {self._latest.loss:.4f}[/]",
            f"lr {line.lr:.2e}",
            f"norm {line.grad_norm:.2f}",
            f"{1e3 * self._latest.step_s:.1f} ms/step",
            f"{count_words(line.tokens / self._latest.step_s)} tok/s",
            *self._extras(line),
        ]
        return Group(bar, Text.from_markup("  ".join(figures)))

    def _extras(self, line: StepLine) -> list[str]:
        extras = [] if line.mfu is None else [f"MFU {100 * line.mfu:.1f}%"]
        memory = self.memory()
        return extras if memory is None else [*extras, format_bytes(memory)]

    def _eta_s(self, step: int) -> float:
        done = max(1, step - self._first_step)
        return self.elapsed_s() / done * (self._total_steps - step)


@dataclass(frozen=True)
class _Shown:
    """A step with its smoothed loss and duration."""

    line: StepLine
    loss: float
    step_s: float
