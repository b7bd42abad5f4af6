import io
from dataclasses import replace

import pytest

from cupygpt.console.console import Console, StepLine
from cupygpt.console.figures import format_bytes
from cupygpt.console.safe_text import printable


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line(step: int, **changes: float) -> StepLine:
    shown = StepLine(
        step=step, epoch=0.5, loss=2.5, lr=1e-3, grad_norm=0.75, step_s=0.1, tokens=1024
    )
    return replace(shown, **changes)  # type: ignore[arg-type]


def run_console(stream: io.StringIO, *, terminal: bool, width: int) -> Console:
    clock = Clock()
    console = Console(
        stream, terminal=terminal, width=width, log_every=10, clock=clock, memory=lambda: 3 * 2**20
    )
    console.header([("device", "CPU, 2 cores"), ("model", "4 layers " * 20)])
    console.start(0, 30)
    for step in range(1, 31):
        clock.now += 0.1
        console.step(line(step))
    console.validation(30, 2.25, 3.25, best=True)
    console.sample(30, "Once [bold]upon\x1b[31m a time\r\n\tend")
    console.saved(30, "runs/x")
    console.warn("mind this")
    console.finish()
    return console


def test_off_a_terminal_the_lines_are_plain() -> None:
    stream = io.StringIO()
    run_console(stream, terminal=False, width=100)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    steps = [item for item in lines if item.startswith("step ") and "/30" in item]
    assert [item.split("/")[0].split()[1] for item in steps] == ["1", "10", "20", "30"]
    assert steps[1] == (
        "step   10/30 | epoch 0.50 | loss 2.5000 | norm 0.7500 | lr 1.00e-03 | 100.00 ms | "
        "10.2k tok/s | ETA 0:02 | 3 MiB"
    )
    assert "step   30 | validation loss 2.2500 | 3.2500 bits/byte | best so far" in lines
    assert "Once [bold]upon·[31m a time·" in lines  # markup and control codes are shown, not obeyed
    assert "warning: mind this" in lines


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_bar_fits_its_terminal(width: int) -> None:
    stream = io.StringIO()
    run_console(stream, terminal=True, width=width)
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "sample at step 30" in text
    assert "validation loss 2.2500" in text
    assert "\x1b[31m a time" not in text
    from rich.text import Text

    for row in text.replace("\r", "\n").splitlines():
        assert Text.from_ansi(row).cell_len <= width, row


def test_the_bar_shows_its_figures() -> None:
    stream = io.StringIO()
    console = Console(stream, terminal=True, width=120, clock=Clock(), memory=lambda: 3 * 2**20)
    console.start(0, 30)
    console.step(line(3, mfu=0.4))
    assert console._live is not None
    console._live.refresh()
    console.finish()
    from rich.text import Text

    text = Text.from_ansi(stream.getvalue()).plain
    figures = ["step 3/30", "epoch 0.50", "loss 2.5000", "lr 1.00e-03", "norm 0.75"]
    figures += ["100.0 ms/step", "10.2k tok/s", "MFU 40.0%", "3 MiB", "ETA"]
    for figure in figures:
        assert figure in text, figure


def test_a_long_line_stays_whole_in_a_file() -> None:
    stream = io.StringIO()
    Console(stream, terminal=False).note("x" * 300)
    assert stream.getvalue() == "x" * 300 + "\n"


def test_control_characters_and_sizes_become_readable() -> None:
    assert printable("a\x00b\x1bc\td\ne\ufffd") == "a·b·c    d\ne\ufffd"
    assert format_bytes(5 * 2**20) == "5 MiB"
    assert format_bytes(3 * 2**29) == "1.50 GiB"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_leaves_one_line_with_its_duration(*, terminal: bool) -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(stream, terminal=terminal, width=80, clock=clock)
    with console.progress("compiling 3 files") as show:
        for done in (1, 2, 3):
            clock.now += 0.5
            show(done, 3)
    from rich.text import Text

    assert "compiling 3 files: 1.5 s" in Text.from_ansi(stream.getvalue()).plain
