"""--gpus N: this process starts N ranks of the same command on this machine, and waits for them."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from cupygpt.console.stream import say
from cupygpt.distributed.launcher_env import KEY, LOOPBACK, PORT, free_port
from cupygpt.distributed.watchdog import FAILED, LAUNCHER_PID

POLL_S = 0.05
GRACE_S = 8.0
"""After a rank has failed, the others have this time to end by themselves; then they are killed.
It is longer than a watchdog takes at worst: 1 s for `on_abort`, DELIVERY_S, 1 s to flush stdout."""


def _signals(*names: str) -> list[signal.Signals]:
    """Those of the signals that this system has."""
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]


_ALWAYS = _signals("SIGINT", "SIGTERM", "SIGUSR1")
_UNLESS_IGNORED = _signals("SIGHUP")
"""nohup makes a process ignore it: then the ranks ignore it too."""
_STOPPED = {code for number in (*_ALWAYS, *_UNLESS_IGNORED) for code in (128 + number, -number)}
"""Exit codes of a rank that ended because of a signal: its own after saving a checkpoint, or the
signal's if the rank had set no handler yet."""


class _Launched:
    """The ranks that this process has started, and the signals that it passes on to them."""

    def __init__(self) -> None:
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.forwarded: list[int] = []
        self._previous: dict[int, Any] = {}

    def start(self, arguments: Sequence[str], environ: Mapping[str, str], rank: int) -> None:
        """Start one rank."""
        # Each rank has its own session. Otherwise a terminal's Ctrl-C would reach it twice, and
        # the second one means: end without saving.
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
        )
        self.ranks.append(process)
        for number in self.forwarded:
            process.send_signal(number)

    def __enter__(self) -> "_Launched":
        handlers: list[tuple[int, Any]] = [
            *((number, self._forward) for number in _UNLESS_IGNORED),
            *((number, self._suspend) for number in _signals("SIGTSTP")),
        ]
        handlers = [one for one in handlers if signal.getsignal(one[0]) != signal.SIG_IGN]
        handlers += [(number, self._forward) for number in _ALWAYS]
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self.forwarded.append(number)
        self._send_to_all(number)

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        # SIGTSTP itself has no effect on the ranks, which are not in the terminal's session.
        self._send_to_all(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when the shell continues this process
        self._send_to_all(signal.SIGCONT)

    def _send_to_all(self, number: int) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `count` ranks of `python arguments` and wait for all of them; returns the exit code.

    The exit code is that of the first rank that failed; if none did, that of rank 0. Each SIGINT,
    SIGTERM, SIGHUP and SIGUSR1 is passed on once to every rank; Ctrl-Z (SIGTSTP) suspends the ranks
    together with this process. If a signal killed a rank, stderr names it; a rank that failed by
    itself has reported the reason. Port and key are chosen here, whatever CUPYGPT_PORT and
    CUPYGPT_KEY say.
    """
    environ = {
        **{name: value for name, value in os.environ.items() if name != PORT},
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(free_port(LOOPBACK)),
        KEY: secrets.token_hex(),
        LAUNCHER_PID: str(os.getpid()),
    }
    with _Launched() as launched:
        for rank in range(count):
            launched.start(arguments, environ, rank)
        return _wait(launched.ranks, launched.forwarded)


def _wait(ranks: Sequence["subprocess.Popen[bytes]"], forwarded: Sequence[int]) -> int:
    """Wait for all ranks, or until one has failed and the others have ended; the exit code."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [r for r, code in enumerate(codes) if code and not _was_asked_to(code, forwarded)]
        if failed:
            # If several ended together, a rank that was killed by a signal is the cause.
            first = next((r for r in failed if (codes[r] or 0) < 0), failed[0])
            return _end_others(ranks, first)
        if all(code is not None for code in codes):
            return _exit_code(codes[0] or 0)
        time.sleep(POLL_S)


def _was_asked_to(code: int, forwarded: Sequence[int]) -> bool:
    """Whether a rank ended with this code because of a signal that was passed on to it."""
    return bool(forwarded) and code in _STOPPED


def _end_others(ranks: Sequence["subprocess.Popen[bytes]"], first: int) -> int:
    """Wait until the other ranks have ended after the `first` failed; the exit code of all."""
    code = ranks[first].returncode
    if code < 0:
        name = signal.Signals(-code).name
        say(
            f"error: rank {first} (process {ranks[first].pid}) was killed by {name}; "
            f"the other ranks end too."
        )
        if -code == signal.SIGKILL:
            say("Linux does that when main memory runs out: see dmesg.")
    deadline = time.monotonic() + GRACE_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    stuck = [str(number) for number, rank in enumerate(ranks) if rank.poll() is None]
    if stuck:
        say(f"error: killed because still running after {GRACE_S:g} s: rank {', '.join(stuck)}")
    return _exit_code(code or FAILED)


def _exit_code(code: int) -> int:
    """The exit code that shells report: 128 + the signal's number for a killed process."""
    return 128 - code if code < 0 else code
