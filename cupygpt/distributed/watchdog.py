"""When one rank dies, all end, within seconds and with the reason.

NCCL itself would wait forever for a dead rank, in C code that no exception reaches. So each rank
watches a connection to rank 0 (and rank 0 one to each) on a thread of its own: a process that dies
closes its connection, one that fails says why first, and a host that vanishes stops beating.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cupygpt.distributed.messages import Closed, Wire

BEAT_S = 1.0
MISSED_BEATS = 30
"""Silence that means death where the connection stays open: counted, not clocked, so that a run
that was suspended as a whole (Ctrl-Z, a sleeping laptop) goes on."""
DELIVERY_S = 3.0
"""How long a rank that ends waits for the others to take note."""
LAUNCHER_PID = "CUPYGPT_LAUNCHER_PID"
"""Set by our own launcher: its ranks end with it."""

FAILED = 1

Result = TypeVar("Result")


def die(code: int) -> None:
    """End the process at once, whatever its other threads are doing."""
    _within(1.0, sys.stdout.flush)
    os._exit(code)


class Watchdog:
    """Threads that watch the other ranks; made when all have met.

    `advice` may be set to a function whose text is added to the reason of the end (where the last
    checkpoint is); it also is the place to leave the terminal in order.
    """

    def __init__(
        self,
        rank: int,
        wires: Mapping[int, Wire],
        *,
        end: Callable[[int], None] = die,
        report: Callable[[str], object] | None = None,
        beat_s: float = BEAT_S,
    ) -> None:
        self.rank = rank
        self.advice: Callable[[], str] | None = None
        self._wires = dict(wires)
        self._end, self._report, self._beat_s = end, report or sys.stderr.write, beat_s
        self._closing = threading.Event()
        self._ending = threading.Lock()
        launcher = os.environ.get(LAUNCHER_PID)
        self._launcher = int(launcher) if launcher else None
        self._threads = [
            threading.Thread(
                target=self._watch, args=(peer, wire), name=f"watch-{peer}", daemon=True
            )
            for peer, wire in self._wires.items()
        ]
        for thread in self._threads:
            thread.start()

    def fail(self, reason: str, code: int) -> bool:
        """Tell the others that this rank fails.

        True if it was reported, False if the caller should: rank 0, and a rank that cannot reach it.
        """
        if not self._ending.acquire(blocking=False):
            # Another rank failed first: a watching thread is about to end this process.
            time.sleep(2 * DELIVERY_S)
            return True
        self._tell({"failed": reason, "code": code, "rank": self.rank})
        return self._all_gone() and self.rank != 0

    def close(self) -> None:
        """The run is over: connections that end from now on are no failure."""
        self._closing.set()
        self._tell("bye")
        self._all_gone()
        for wire in self._wires.values():
            wire.close()

    def _tell(self, message: Any, *, besides: int | None = None) -> None:
        for peer, wire in self._wires.items():
            if peer != besides:
                with contextlib.suppress(Closed):
                    wire.send(message)

    def _all_gone(self) -> bool:
        """Wait until all others have closed their end; whether they have.

        A process that exits before may take its last message with it.
        """
        deadline = time.monotonic() + DELIVERY_S
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in others)

    def _watch(self, peer: int, wire: Wire) -> None:
        silent, last_beat = 0, time.monotonic()
        while True:
            try:
                message = wire.receive(self._beat_s)
                silent = 0
            except TimeoutError:
                message = None
                silent += 1
            except (Closed, ValueError):
                self._lost(peer, "its process ended without a word, or the network broke")
                return
            if message == "bye":
                return
            if isinstance(message, dict):
                self._peer_failed(message, peer)
                return
            if silent >= MISSED_BEATS:
                self._lost(peer, f"nothing was heard of it for {silent * self._beat_s:g} s")
                return
            if time.monotonic() - last_beat >= self._beat_s:
                last_beat = time.monotonic()
                with contextlib.suppress(Closed):
                    wire.send("beat")
                self._check_launcher()

    def _check_launcher(self) -> None:
        if self._launcher is not None and os.getppid() != self._launcher:
            self._stop(f"the process that started rank {self.rank} is gone.", FAILED)

    def _peer_failed(self, message: dict[str, Any], peer: int) -> None:
        """A rank has said why it fails: rank 0 reports it and tells the rest."""
        if not self._ending.acquire(blocking=False):
            return
        if self.rank == 0:
            self._say(f"rank {message['rank']}: {message['failed']}")
            self._tell(message, besides=peer)
            self._all_gone()
        self._end(int(message["code"]))

    def _lost(self, peer: int, how: str) -> None:
        if not self._closing.is_set():
            self._stop(f"rank {peer} is lost: {how}. All ranks end.", FAILED)

    def _stop(self, reason: str, code: int) -> None:
        if not self._ending.acquire(blocking=False):
            return
        self._say(reason if self.rank == 0 else f"rank {self.rank}: {reason}")
        self._tell({"failed": reason, "code": code, "rank": self.rank})
        if self.rank == 0:
            self._all_gone()
        self._end(code)

    def _say(self, text: str) -> None:
        # The advice may look at files: the end must not depend on their disk.
        advice = _within(1.0, self.advice) if self.advice is not None else None
        self._report(f"error: {text} {advice or ''}".rstrip() + "\n")


def _within(limit_s: float, function: Callable[[], Result]) -> Result | None:
    """What `function` returns, or None if that takes longer than `limit_s` or fails."""
    results: list[Result] = []

    def call() -> None:
        with contextlib.suppress(Exception):
            results.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    return results[0] if results else None
