"""--gpus N: this process starts N ranks of the same command here, and looks after them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from cupygpt.cli import INTERRUPTED
from cupygpt.distributed.launcher_env import LOOPBACK, PORT, free_port
from cupygpt.distributed.watchdog import FAILED, LAUNCHER_PID

POLL_S = 0.05
GRACE_S = 8.0
"""After a rank has failed, the others end by themselves within this, or are killed."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPED = (INTERRUPTED, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
"""After a checkpoint, or before the rank could catch the signal."""


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `count` ranks of `python arguments` and wait for all; returns the exit code.

    That is the code of the rank that failed first, else that of rank 0. SIGINT and SIGTERM go on
    to every rank, once each time. A rank that a signal killed is named on stderr; one that failed
    by itself has said why.
    """
    port = free_port(LOOPBACK)
    environ = {name: value for name, value in os.environ.items() if name != PORT}
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        forwarded.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    forwarded: list[int] = []
    previous: dict[int, Any] = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        for rank in range(count):
            own = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": LOOPBACK,
                "MASTER_PORT": str(port),
                LAUNCHER_PID: str(os.getpid()),
            }
            # In a session of their own: a terminal's Ctrl-C would reach the ranks twice otherwise,
            # and the second one means to end without saving.
            process = subprocess.Popen(
                [sys.executable, *arguments], env={**environ, **own}, start_new_session=True
            )
            ranks.append(process)
            for number in forwarded:
                process.send_signal(number)
        return _wait(ranks, forwarded)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence["subprocess.Popen[bytes]"], forwarded: Sequence[int]) -> int:
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [r for r, code in enumerate(codes) if code and not _meant(code, forwarded)]
        if failed:
            # Where several ended at once, the one that a signal killed took the others with it.
            first = next((r for r in failed if (codes[r] or 0) < 0), failed[0])
            return _end_the_others(ranks, first)
        if all(code is not None for code in codes):
            return _as_shells_do(codes[0] or 0)
        time.sleep(POLL_S)


def _meant(code: int, forwarded: Sequence[int]) -> bool:
    """Whether a rank ended like this because it was asked to."""
    return bool(forwarded) and code in _STOPPED


def _end_the_others(ranks: Sequence["subprocess.Popen[bytes]"], first: int) -> int:
    code = ranks[first].returncode
    if code < 0:
        name = signal.Signals(-code).name
        sys.stderr.write(
            f"error: rank {first} (process {ranks[first].pid}) was killed by {name}; "
            f"the other ranks end.\n"
        )
        if -code == signal.SIGKILL:
            sys.stderr.write("The system does that when main memory runs out: see dmesg.\n")
    deadline = time.monotonic() + GRACE_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    stuck = [str(number) for number, rank in enumerate(ranks) if rank.poll() is None]
    if stuck:
        sys.stderr.write(f"error: killed after {GRACE_S:g} s of waiting: rank {', '.join(stuck)}\n")
    return _as_shells_do(code or FAILED)


def _as_shells_do(code: int) -> int:
    return 128 - code if code < 0 else code
