"""What a run tells the program that asked for it, and how that program ends it."""

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal

from cupygpt.console.bar import StepLine
from cupygpt.console.console import Console
from cupygpt.interface.words import in_python_words

CTRL_C = "SIGINT"
BY_CALLBACK = "an error of on_event"

Kind = Literal["step", "validation", "questions", "sample", "checkpoint"]


@dataclass(frozen=True)
class Event:
    """Something that has happened in a run. What does not belong to its kind is None.

    `step` is the number of updates that the weights had had, as in main.log. A "step" has loss,
    learning rate, gradient norm, epoch, and its duration in seconds; a "validation" loss and bits
    per byte; a "sample" its text, "questions" a sentence.
    """

    kind: Kind
    step: int
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    epoch: float | None = None
    seconds: float | None = None
    bits_per_byte: float | None = None
    text: str | None = None


Callback = Callable[[Event], object]


class Stop:
    """Ends a run after its current step, with a checkpoint: by Ctrl-C, or by the callback.

    On the main thread the first Ctrl-C in the block is the request, and the second is raised as
    KeyboardInterrupt. Other threads get no signals.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.received: str | None = None
        self.saves_asked = 0
        self.error: Exception | None = None
        self.console = console
        self._previous: Any = None
        self._is_second = False

    def tell(self, callback: Callback, event: Event) -> None:
        """Call the callback. What it raises ends the run."""
        if self.error is not None:
            return
        try:
            callback(event)
        except KeyboardInterrupt:
            if self._is_second:
                raise
            self.received = self.received or CTRL_C
        except Exception as error:  # noqa: BLE001 - raised when the run has been saved
            self.error = error
            self.received = BY_CALLBACK

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            self._is_second = True
            raise KeyboardInterrupt
        self.received = CTRL_C
        if self.console is not None:
            self.console.stopping(
                "Ctrl-C: the run ends after this step, with a checkpoint. A second one ends it at "
                "once, without saving."
            )


class EventConsole(Console):
    """A console that also tells of each event, and calls flags by their keywords."""

    def __init__(self, tell: Callable[[Event], None], **options: Any) -> None:
        super().__init__(**options)
        self._tell = tell

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        """The table at the start of a run."""
        super().header([(label, in_python_words(text)) for label, text in rows])

    def note(self, text: str) -> None:
        """A line of information."""
        super().note(in_python_words(text))

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        super().warn(in_python_words(text))

    def step(self, line: StepLine) -> None:
        """One finished optimizer step."""
        super().step(line)
        self._tell(
            Event(
                "step",
                line.step - 1,
                loss=line.loss,
                lr=line.lr,
                grad_norm=line.grad_norm,
                epoch=line.epoch,
                seconds=line.step_s,
            )
        )

    def validation(
        self,
        step: int,
        loss: float,
        bits_per_byte: float | None,
        *,
        best: bool,
        reference: float | None = None,
    ) -> None:
        """A validation loss."""
        super().validation(step, loss, bits_per_byte, best=best, reference=reference)
        self._tell(Event("validation", step, loss=loss, bits_per_byte=bits_per_byte))

    def evaluation(self, step: int, text: str) -> None:
        """How many questions were answered rightly."""
        super().evaluation(step, text)
        self._tell(Event("questions", step, text=text))

    def sample(self, step: int, text: str) -> None:
        """Text that the model wrote."""
        super().sample(step, text)
        self._tell(Event("sample", step, text=text))

    def saved(self, step: int, place: str) -> None:
        """A checkpoint was written."""
        super().saved(step, place)
        self._tell(Event("checkpoint", step))
