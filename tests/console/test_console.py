import io
import re
import sys
from dataclasses import replace

import pytest
from rich.text import Text

from cupygpt.console.bar import StepLine
from cupygpt.console.console import Console
from cupygpt.console.figures import format_bytes


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


def make_console(stream: io.StringIO, *, terminal: bool, width: int, clock: Clock) -> Console:
    return Console(
        stream, terminal=terminal, width=width, log_every=10, clock=clock, memory=lambda: 3 * 2**20
    )


def run_console(stream: io.StringIO, *, terminal: bool, width: int) -> Console:
    clock = Clock()
    console = make_console(stream, terminal=terminal, width=width, clock=clock)
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


def drawn_bar(console: Console, stream: io.StringIO) -> list[str]:
    """The lines of the bar as it is drawn now."""
    assert console._live is not None
    stream.seek(0)
    stream.truncate()
    console._live.refresh()
    return Text.from_ansi(stream.getvalue().replace("\r", "")).plain.splitlines()


def test_off_a_terminal_the_lines_are_plain() -> None:
    stream = io.StringIO()
    run_console(stream, terminal=False, width=100)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[1] == "model        " + "4 layers " * 20  # whole, for grep
    steps = [item for item in lines if item.startswith("step ") and "/30" in item]
    assert [item.split("/")[0].split()[1] for item in steps] == ["1", "10", "20", "30"]
    assert steps[1] == (
        "step   10/30 | epoch 0.50 | loss 2.5000 | norm 0.7500 | lr 1.00e-03 | 100.00 ms | "
        "10.2k tok/s | ETA 0:02 | 3 MiB"
    )
    assert "step   30 | validation loss 2.2500 | 3.2500 bits/byte | best so far" in lines
    assert "step   30 | checkpoint saved in runs/x" in lines
    assert "Once [bold]upon·[31m a time" in lines  # markup and control codes are shown, not obeyed
    assert "\tend" in lines
    assert "warning: mind this" in lines


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_what_happens_in_few_lines(width: int) -> None:
    stream = io.StringIO()
    run_console(stream, terminal=True, width=width)
    text = stream.getvalue()
    assert "\x1b[31m a time" not in text
    # What is printed while there is a bar begins on the bar's line, which was cleared before.
    text = re.sub(r"\r(\x1b\[\d?[AK])+", "\n", text)
    rows = Text.from_ansi(text).plain.splitlines()
    panel = [row for row in rows if row.startswith(("╭", "│", "╰"))]
    assert len(panel) == 4
    assert panel[0].startswith("╭─ sample at step 30 ─")
    assert {len(row.expandtabs()) for row in panel} == {min(width, 100)}
    words = " ".join(" ".join(rows).split())
    assert "step 30 | validation loss 2.2500 | 3.2500 bits/byte | best so far" in words
    assert "runs/x" not in text  # the bar says what was saved, and the header where


def test_a_sample_has_no_blank_lines_at_its_end() -> None:
    stream = io.StringIO()
    make_console(stream, terminal=True, width=80, clock=Clock()).sample(7, "one\n\ntwo\n\n\n")
    assert len(stream.getvalue().splitlines()) == 5


def test_a_long_sample_is_cut_on_a_terminal_only() -> None:
    sample = "\n".join(f"line {i}" for i in range(50))
    for terminal, wanted in ((True, 8), (False, 50)):
        stream = io.StringIO()
        make_console(stream, terminal=terminal, width=80, clock=Clock()).sample(7, sample)
        text = stream.getvalue()
        assert text.count("line ") == wanted
        assert ("first lines of the sample at step 7" in text) == terminal


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_has_two_lines_that_fit(width: int) -> None:
    stream = io.StringIO()
    console = make_console(stream, terminal=True, width=width, clock=Clock())
    console.start(0, 30)
    console.step(line(3, mfu=0.4))
    console.saved(2, "runs/x")
    rows = drawn_bar(console, stream)
    console.finish()
    assert len(rows) == 2
    assert all(len(row) <= width for row in rows)
    figures = ["step 3/30", "epoch 0.50", "saved 2", "ETA ?", "loss 2.5000", "lr 1.00e-03"]
    figures += ["norm 0.75"]
    if width == 120:
        figures += ["100.0 ms/step", "10.2k tok/s", "MFU 40.0%", "3 MiB"]
    for figure in figures:
        assert figure in "\n".join(rows), figure


def test_the_first_step_says_nothing_about_the_time_left() -> None:
    """It comes after the first validation, and on a GPU after the capture of the graph."""
    stream, clock = io.StringIO(), Clock()
    console = Console(stream, terminal=False, log_every=1, clock=clock)
    console.start(100, 110)
    for step, seconds in ((101, 60.0), (102, 1.0), (103, 2.0)):
        clock.now += seconds
        console.step(line(step, step_s=seconds))
    shown = [text.split(" | ") for text in stream.getvalue().splitlines()]
    assert [parts[7] for parts in shown] == ["ETA ?", "ETA 0:08", "ETA 0:11"]
    assert shown[1][6] == "1.0k tok/s"  # not slowed by the first step


@pytest.mark.parametrize("terminal", [False, True])
def test_a_signal_is_acknowledged_at_once(*, terminal: bool) -> None:
    stream = io.StringIO()
    console = make_console(stream, terminal=terminal, width=80, clock=Clock())
    console.start(0, 30)
    console.step(line(1))
    if terminal:
        console.stopping("Ctrl-C: saving")
        assert drawn_bar(console, stream)[-1] == "Ctrl-C: saving"
    else:
        console.stopping("Ctrl-C: saving")
        assert stream.getvalue().endswith("\nCtrl-C: saving\n")
    console.last_words("Ctrl-C again: stopped")
    assert stream.getvalue().endswith("\nCtrl-C again: stopped\n")
    console.finish()


def test_the_cursor_is_never_hidden() -> None:
    stream = io.StringIO()
    console = run_console(stream, terminal=True, width=80)
    with console.progress("compiling"):
        pass
    assert "\x1b[?25l" not in stream.getvalue()


def test_a_line_for_grep_or_for_a_shell_stays_whole() -> None:
    for text, terminal in (("x " * 300, False), ("python -m x " * 30 + "y", True)):
        stream = io.StringIO()
        Console(stream, terminal=terminal, width=80).note(text)
        assert stream.getvalue() == text + "\n"
    stream = io.StringIO()
    Console(stream, terminal=True, width=80).note("other words " * 30)
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert stream.getvalue().split() == ["other", "words"] * 30


def test_the_time_left_follows_a_changed_number_of_steps() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(stream, terminal=False, log_every=1, clock=clock)
    console.start(0, 100)
    for step in (1, 2):
        clock.now += 1.0
        console.step(line(step))
    console.set_total(12)
    clock.now += 1.0
    console.step(line(3))
    shown = stream.getvalue().splitlines()
    assert [text.split(" | ")[7] for text in shown] == ["ETA ?", "ETA 1:38", "ETA 0:09"]
    assert shown[2].startswith("step    3/12 ")


def test_sizes_become_readable() -> None:
    assert format_bytes(160_256) == "156 KiB"
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
    assert "compiling 3 files: 1.5 s" in Text.from_ansi(stream.getvalue()).plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "has_bar"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "unknown"}, False),
        ({}, True),  # of Windows, and of containers
        ({"TERM": "xterm-color", "JPY_PARENT_PID": "17"}, False),  # a cell of a notebook
        ({"TERM": "xterm-color", "PAGER": "cat", "GIT_PAGER": "cat"}, False),  # VS Code's
        ({"TERM": "xterm-color", "PAGER": "cat"}, True),
    ],
)
def test_a_bar_is_drawn_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, has_bar: bool
) -> None:
    for name in ("TERM", "JPY_PARENT_PID", "PAGER", "GIT_PAGER", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(width=80)
    assert console.live_mode == has_bar
    console.start(0, 2)
    console.step(line(1))
    console.finish()
    assert ("\x1b[" in stream.getvalue()) == has_bar
    assert ("step    1/2 |" in stream.getvalue()) == (not has_bar)


def test_a_notebook_that_calls_the_command_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stdout can say that it is a terminal."""
    for name in ("JPY_PARENT_PID", "PAGER", "GIT_PAGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Console(Terminal(), width=80).live_mode
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not Console(Terminal(), width=80).live_mode


def test_a_pipe_gets_no_codes_whatever_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    stream = io.StringIO()
    console = Console(stream)
    console.start(0, 2)
    console.step(line(1))
    console.sample(1, "text")
    console.finish()
    assert "\x1b" not in stream.getvalue()
    assert "step    1/2 |" in stream.getvalue()
