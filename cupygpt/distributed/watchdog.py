"""If one rank dies, all ranks end, within seconds and with the reason.

NCCL itself waits forever for a dead rank, in C code that no exception reaches. So each rank watches
its connection to rank 0 on a thread, and rank 0 watches one connection to each rank. A process that
dies closes its connection, a process that fails says why before it ends, and a host that vanishes
sends no more heartbeats.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cupygpt.console.stream import say
from cupygpt.distributed.messages import (
    MAX_SHOWN_CHARACTERS,
    Closed,
    MessageSocket,
    escaped,
)

HEARTBEAT_S = 1.0
MAX_MISSED_HEARTBEATS = 30
"""A rank that misses so many heartbeats is dead, even if its connection stays open. Heartbeats are
counted, not seconds: the clock also runs while a whole run is suspended (Ctrl-Z, a sleeping
laptop), and such a run must be able to continue."""
DELIVERY_S = 3.0
"""How long at most a rank that ends waits until the others have received its message."""
LAUNCHER_PID = "CUPYGPT_LAUNCHER_PID"
"""Set by --gpus: a rank ends when this process, its launcher, has ended."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

FAILED = 1

MAX_BYTES = 1 << 16
"""No message between watchdogs is longer."""

Result = TypeVar("Result")


def exit_now(code: int) -> None:
    """End the process at once, whatever its other threads are doing."""
    _call_with_limit(1.0, sys.stdout.flush)
    os._exit(code)


def exit_code_of(message: dict[str, Any]) -> int:
    """The exit code that a message asks for, from 1 to 255: no message ends a rank as a success."""
    code = message.get("code")
    return code if type(code) is int and 1 <= code <= 255 else FAILED


class Watchdog:
    """Threads that watch the other ranks; created when all ranks are connected.

    `on_abort` may be set to a function that returns a sentence for the message (where the last
    checkpoint is). The function may have side effects, such as restoring the terminal.
    """

    def __init__(
        self,
        rank: int,
        connections: Mapping[int, MessageSocket],
        *,
        end: Callable[[int], None] = exit_now,
        report: Callable[[str], object] = say,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.rank = rank
        self.on_abort: Callable[[], str] | None = None
        self._connections = dict(connections)
        self._end, self._report = end, report
        self._heartbeat_s = heartbeat_s
        self._closing = threading.Event()
        self._ending = threading.Lock()  # held from the moment when this process begins to end
        launcher = os.environ.get(LAUNCHER_PID)
        self._launcher = int(launcher) if launcher else None
        if self._launcher is not None:
            _wake_up_when_the_launcher_ends()
        self._threads = [
            threading.Thread(
                target=self._watch, args=(peer, connection), name=f"watch-{peer}", daemon=True
            )
            for peer, connection in self._connections.items()
        ]
        for thread in self._threads:
            thread.start()

    def fail(self, reason: str, code: int) -> bool:
        """Tell the others that this rank fails.

        Returns True if rank 0 reports the reason. Returns False if the caller must report it: it
        is rank 0, or cannot reach rank 0.
        """
        if not self._ending.acquire(blocking=False):
            # Another failure is being handled; the thread that handles it will end this process.
            time.sleep(2 * DELIVERY_S)
            return True
        self._send_to_all(_failure(reason, code))
        return self._wait_for_others() and self.rank != 0

    def close(self) -> None:
        """The run is over: a connection that ends from now on is no failure."""
        self._closing.set()
        self._send_to_all("bye")
        self._wait_for_others()
        for connection in self._connections.values():
            connection.close()

    def _send_to_all(self, message: Any, *, except_to: int | None = None) -> None:
        for peer, connection in self._connections.items():
            if peer != except_to:
                with contextlib.suppress(Closed):
                    connection.send(message)

    def _wait_for_others(self) -> bool:
        """Wait until every other rank has said goodbye, failed or closed its connection.

        Returns whether all have, within DELIVERY_S. If this process ends earlier, its last message
        may be lost with it.
        """
        deadline = time.monotonic() + DELIVERY_S
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in others)

    def _watch(self, peer: int, connection: MessageSocket) -> None:
        """Receive from one rank until it says goodbye, fails or is lost; send it heartbeats."""
        missed, last_sent = 0, time.monotonic()
        while True:
            try:
                message = connection.receive(self._heartbeat_s, MAX_BYTES)
                missed = 0
            except TimeoutError:
                message = None
                missed += 1
            except Closed:
                self._lost(peer, "its process ended without a message, or the network failed")
                return
            if message == "bye":
                return
            if isinstance(message, dict):
                self._peer_failed(message, peer)
                return
            if missed >= MAX_MISSED_HEARTBEATS:
                self._lost(peer, f"it sent nothing for {missed * self._heartbeat_s:g} s")
                return
            if time.monotonic() - last_sent >= self._heartbeat_s:
                last_sent = time.monotonic()
                with contextlib.suppress(Closed):
                    connection.send("heartbeat")
                self._check_launcher()

    def _check_launcher(self) -> None:
        if self._launcher is not None and os.getppid() != self._launcher:
            self._abort(f"the process that started rank {self.rank} has ended.", FAILED)

    def _peer_failed(self, message: dict[str, Any], peer: int) -> None:
        """A rank has said why it fails: rank 0 reports it and tells the other ranks."""
        if not self._ending.acquire(blocking=False):
            return
        if self.rank == 0:
            self._report_error(f"rank {peer}: {escaped(message.get('failed'))}")
            self._send_to_all(message, except_to=peer)
            self._wait_for_others()
        self._end(exit_code_of(message))

    def _lost(self, peer: int, how: str) -> None:
        if not self._closing.is_set():
            self._abort(f"rank {peer} is lost: {how}. All ranks end.", FAILED)

    def _abort(self, reason: str, code: int) -> None:
        """Report why this process ends, tell the others, and end it."""
        if not self._ending.acquire(blocking=False):
            return
        self._report_error(reason if self.rank == 0 else f"rank {self.rank}: {reason}")
        self._send_to_all(_failure(reason, code))
        if self.rank == 0:
            self._wait_for_others()
        self._end(code)

    def _report_error(self, text: str) -> None:
        # `on_abort` may read files: a disk that hangs must not keep this process from ending.
        advice = _call_with_limit(1.0, self.on_abort) if self.on_abort is not None else None
        self._report(f"error: {text} {advice or ''}".rstrip())


def _wake_up_when_the_launcher_ends() -> None:
    """If the launcher is killed while all are suspended (Ctrl-Z), this rank wakes up, and ends.

    Linux only: elsewhere a suspended rank stays as it is.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def _failure(reason: str, code: int) -> dict[str, Any]:
    """The message of a rank that fails."""
    return {"failed": reason[:MAX_SHOWN_CHARACTERS], "code": code}


def _call_with_limit(limit_s: float, function: Callable[[], Result]) -> Result | None:
    """What `function` returns, or None if it takes longer than `limit_s` or raises."""
    results: list[Result] = []

    def call() -> None:
        with contextlib.suppress(Exception):
            results.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    return results[0] if results else None
