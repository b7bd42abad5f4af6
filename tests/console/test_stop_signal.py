"""Signals are acknowledged at once, end a run after a checkpoint, and a second one at once."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.small_runs import main_log, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.console.stop_signal import StopSignal, ending_cleanly
from cupygpt.run_folder.new_folder import NewFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals")


class Heard:
    """A console that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stopping(self, text: str) -> None:
        self.lines.append(text)

    def last_words(self, text: str) -> None:
        self.lines.append(text)


def wait_until(ready: Callable[[], object], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_acknowledged_with_what_the_second_does(
    number: signal.Signals,
) -> None:
    heard = Heard()
    with StopSignal(heard) as stop:
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.received)
    assert stop.received == number.name
    (line,) = heard.lines
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert line.startswith(f"{name}: the run ends after this step, with a checkpoint.")
    assert f"A second {name} ends it at once, without saving." in line


def test_sigusr1_asks_for_a_checkpoint_and_ends_nothing() -> None:
    with StopSignal(Heard()) as stop:
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda count=count: stop.saves_asked == count)
    assert stop.received is None


def test_a_signal_that_was_ignored_stays_so() -> None:
    """nohup ignores SIGHUP, so that a run outlives its terminal."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_what_was_set_before_comes_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    with StopSignal():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_start_leaves_no_folder(tmp_path: Path, number: signal.Signals) -> None:
    def start() -> None:
        with ending_cleanly(), NewFolder(str(tmp_path / "run"), overwrite=False):
            os.kill(os.getpid(), number)
            time.sleep(1.0)

    with pytest.raises(SystemExit) as raised:
        start()
    assert raised.value.code == 128 + number
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(number) == signal.SIG_DFL


BUSY = """
import hashlib
from cupygpt.console.stop_signal import StopSignal

class Console:
    def stopping(self, text): print(text, flush=True)
    def last_words(self, text): print(text, flush=True)

with StopSignal(Console()):
    print("ready", flush=True)
    # One call, in which Python runs no signal handler.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_both_signals_are_heard_during_a_long_call() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("Ctrl-C: the run ends after this step")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out == "ended at once, without saving; earlier checkpoints stay.\n"
    assert process.returncode == 130
    assert err == ""


def start(tmp_path: Path, run: Path, *more: str, **streams: object) -> "subprocess.Popen[bytes]":
    flags = [*write_files(tmp_path), "-n", "100000", "-v", "0", "--checkpoint-every", "0", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "cupygpt.train", *flags, "-o", str(run)],
        **streams,  # type: ignore[call-overload]
    )


def trained_steps(run: Path) -> int:
    lines = main_log(run) if (run / "main.log").exists() else []
    return sum(" trl:" in line for line in lines)


def test_a_run_saves_at_sigusr1_and_goes_on_and_at_sighup_and_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(tmp_path, run, "-v", "50000", **quiet)
    wait_until(lambda: trained_steps(run) > 2)
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: checkpoint_steps(run))
    (first,) = checkpoint_steps(run)
    wait_until(lambda: trained_steps(run) > first + 2)
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (129, b"")
    assert b"stopped by SIGHUP; continue:" in out
    # Validated at step 0 only, whose weights are not kept: nothing is said of best weights.
    assert b"before the first step; it was not measured again" in out
    assert b"write text:  " in out
    assert checkpoint_steps(run)[0] == first
    assert checkpoint_steps(run)[-1] == trained_steps(run)


def test_a_terminal_that_closes_ends_a_run_after_a_checkpoint(tmp_path: Path) -> None:
    """A closed window sends SIGHUP, and its terminal takes no text any more."""
    run = tmp_path / "run"
    ours, theirs = pty.openpty()
    process = start(
        tmp_path, run, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    with contextlib.suppress(OSError):
        wait_until(lambda: os.read(ours, 4096) and trained_steps(run) > 2)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    assert checkpoint_steps(run)[-1] == trained_steps(run)
    assert json.loads((run / "run.json").read_text())["config"]["steps"] == 100000
