"""The bar of long work on files: drawn on a terminal, a line now and then anywhere else."""

import io

from cupygpt.console.work_bar import WorkBar


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_written_after_a_second_and_then_every_ten() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = WorkBar(stream, clock=clock)
    with bar.stage("reading", 100_000_000) as show:
        for second in range(1, 25):
            clock.now = second / 2
            show(4_000_000 * second)
    assert stream.getvalue().splitlines() == [
        "reading: 8.0 of 100.0 MB | 8.0 MB/s | ETA 0:12",
        "reading: 88.0 of 100.0 MB | 8.0 MB/s | ETA 0:02",
    ]


def test_work_that_is_done_at_once_is_not_mentioned() -> None:
    stream = io.StringIO()
    with WorkBar(stream, clock=Clock()).stage("reading", 10) as show:
        show(10)
    assert stream.getvalue() == ""


def test_what_was_done_before_a_stop_does_not_count_for_the_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    with WorkBar(stream, clock=clock).stage("writing", 100_000_000) as show:
        clock.now = 0.5
        show(80_000_000, new=False)
        clock.now = 1.5
        show(90_000_000)
    assert stream.getvalue() == "writing: 90.0 of 100.0 MB | 10.0 MB/s | ETA 0:01\n"


def test_without_a_known_size_there_is_no_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with WorkBar(stream, clock=clock).stage("copying") as show:
        clock.now = 2.0
        show(30_000_000)
    assert stream.getvalue() == "copying: 30.0 MB | 15.0 MB/s\n"


def test_a_terminal_shows_a_bar_at_once_and_no_trace_of_it_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = WorkBar(stream, terminal=True, clock=clock)
    with bar.stage("reading", 100_000_000) as show:
        assert "reading" in stream.getvalue()
        assert "0.0 of 100.0 MB" in stream.getvalue()
        clock.now = 2.0
        show(50_000_000)
    assert "50.0 of 100.0 MB" in stream.getvalue()
    assert "25.0 MB/s" in stream.getvalue()
    assert "ETA 0:02" in stream.getvalue()
    assert "\x1b[?25l" not in stream.getvalue(), "the cursor is never hidden"
    assert stream.getvalue().endswith("\x1b[2K"), "the bar is erased"
