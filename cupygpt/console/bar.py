"""The bar that a terminal shows while a run goes on, and the figures of a step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cupygpt.console.figures import SmoothedMean, count_words, duration_words, format_bytes


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


@dataclass(frozen=True)
class Shown:
    """A step with its smoothed loss and duration, and the seconds that are left."""

    line: StepLine
    loss: float
    step_s: float
    left_s: float

    @property
    def tokens_per_s(self) -> str:
        """The speed, in words."""
        return f"{count_words(self.line.tokens / self.step_s)} tok/s"

    def extras(self, memory: int | None) -> list[str]:
        """Figures that only some devices have; `memory` in bytes."""
        mfu = self.line.mfu
        extras = [] if mfu is None else [f"MFU {100 * mfu:.1f}%"]
        return extras if memory is None else [*extras, format_bytes(memory)]


class StepFigures:
    """What the steps so far say about the next ones.

    The first step of a process counts for nothing but itself: it comes after the first validation,
    and pays for what is made once.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._loss, self._step_s = SmoothedMean(), SmoothedMean()
        self._counted_from: tuple[int, float] | None = None

    def add(self, line: StepLine, now: float) -> Shown:
        """One finished step, at the time `now` in seconds."""
        loss = self._loss.add(line.loss)
        if self._counted_from is None:
            self._counted_from = line.step, now
            return Shown(line, loss, line.step_s, math.nan)
        first, began = self._counted_from
        left_s = (now - began) / (line.step - first) * (self.total_steps - line.step)
        return Shown(line, loss, self._step_s.add(line.step_s), left_s)


class VisibleCursor(RichConsole):
    """Rich's console, but the cursor is never hidden.

    A process that is killed or suspended could not bring it back.
    """

    def show_cursor(self, show: bool = True) -> bool:  # noqa: FBT001, FBT002
        """Show the cursor; a call that would hide it does nothing."""
        return super().show_cursor(show) if show else False


def draw_bar(
    shown: Shown | None,
    total_steps: int,
    *,
    memory: int | None,
    saved: int | None,
    stopping: str | None,
) -> Group:
    """The bar after the step that was `shown` last; the step that was `saved` last.

    `stopping` is what a signal has set off. Figures that do not fit are cut off.
    """
    rows: Sequence[RenderableType] = [Text("first step ...", style="dim")]
    if shown is not None:
        rows = [_progress(shown, total_steps, saved), _figures(shown, memory)]
    if stopping is not None:
        rows = [*rows, Text(stopping, style="bold yellow")]
    return Group(*rows)


def _progress(shown: Shown, total_steps: int, saved: int | None) -> RenderableType:
    step = shown.line.step
    right = [f"epoch {shown.line.epoch:.2f}"]
    right += [] if saved is None else [f"saved {saved}"]
    right += [f"ETA {duration_words(shown.left_s)}"]
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    row.add_row(
        f"step {step}/{total_steps}",
        ProgressBar(total=total_steps, completed=step),
        "  ".join(right),
    )
    return row


def _figures(shown: Shown, memory: int | None) -> RenderableType:
    line = shown.line
    figures = [
        f"[bold]loss {shown.loss:.4f}[/]",
        f"lr {line.lr:.2e}",
        f"norm {line.grad_norm:.2f}",
        f"{1e3 * shown.step_s:.1f} ms/step",
        shown.tokens_per_s,
        *shown.extras(memory),
    ]
    text = Text.from_markup("  ".join(figures))
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
