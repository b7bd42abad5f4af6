"""The ranks of a run as the rest of the program sees them: who am I, agree, wait, fail together."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

from cupygpt.cli import INTERRUPTED
from cupygpt.distributed.launcher_env import RankInfo, find_rank_info
from cupygpt.distributed.messages import Closed, MessageSocket, as_received, escaped
from cupygpt.distributed.rendezvous import Connections, connect_ranks
from cupygpt.distributed.watchdog import FAILED, Watchdog, exit_now
from cupygpt.errors import ConfigError, CupyGPTError, RunError

WAIT_FOR_WATCHDOG_S = 2.0
"""When a connection breaks, wait this long: the watchdog usually knows why, and exits first."""

Result = TypeVar("Result")


class Ranks(Protocol):
    """This process among the ranks of its run."""

    rank: int
    world: int
    local_rank: int

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order. Every rank must call; JSON types only.

        Every rank receives the same values, its own too: a list where a rank gave a tuple.
        """

    def on_abort(self, advice: Callable[[], str]) -> None:
        """Set a function that is called if this process reports the failure of another rank.

        The sentence that it returns ends the message.
        """


class OneRank:
    """The only process of its run."""

    rank, world, local_rank = 0, 1, 0

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of the only rank."""
        return [as_received(value)]

    def on_abort(self, advice: Callable[[], str]) -> None:
        """No other rank can fail: `advice` is never called."""

    def __enter__(self) -> "OneRank":
        return self

    def __exit__(self, *exception: object) -> None:
        return None


ONE_RANK = OneRank()


class ManyRanks:
    """One of several connected processes. Used as a context manager, it ends all of them together.

    An exception that leaves the block ends the other ranks too, and rank 0 prints its message.
    Without an exception, leaving the block waits for the others. If another rank dies, the watchdog
    calls `end` with an exit code, on another thread.
    """

    def __init__(
        self,
        info: RankInfo,
        connections: Connections,
        *,
        debug: bool = False,
        end: Callable[[int], None] = exit_now,
    ) -> None:
        self._debug = debug
        self.rank, self.world, self.local_rank = info.rank, info.world, info.local_rank
        self._control = connections.control
        self._watchdog = Watchdog(info.rank, connections.watch, end=end)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order; rank 0 collects them and sends them to all."""
        with self.connection_errors():
            if self.rank:
                self.rank0.send(value)
                values: list[Any] = self.rank0.receive()
            else:
                others = [self.others[rank].receive() for rank in range(1, self.world)]
                values = [as_received(value), *others]
                for connection in self.others.values():
                    connection.send(values)
        return values

    @property
    def rank0(self) -> MessageSocket:
        """The connection to rank 0; only the other ranks have it."""
        return self._control[0]

    @property
    def others(self) -> dict[int, MessageSocket]:
        """The connections to the other ranks; only rank 0 has them."""
        return self._control

    @contextlib.contextmanager
    def connection_errors(self) -> Iterator[None]:
        """If a connection breaks inside the block, the process ends or RunError is raised."""
        try:
            yield
        except Closed as error:
            time.sleep(WAIT_FOR_WATCHDOG_S)
            raise RunError(f"the connection to another rank broke ({error}).") from error

    def on_abort(self, advice: Callable[[], str]) -> None:
        """Set what the watchdog calls, and adds to its message; see Ranks."""
        self._watchdog.on_abort = advice

    def __enter__(self) -> "ManyRanks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.all_gather_object("done")
            self._watchdog.close()
            for connection in self._control.values():
                connection.close()
            return
        reason, code = _reason(error)
        is_reported = self._watchdog.fail(reason, code)
        if is_reported and isinstance(error, CupyGPTError) and not self._debug:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            raise SystemExit(code) from error


def join_ranks(timeout_s: float, *, debug: bool = False) -> OneRank | ManyRanks:
    """This process among the ranks that its launcher started; waits for the others.

    Raises ConfigError or RunError if they do not connect (see `connect_ranks`). With `debug` each
    rank also shows its own errors.
    """
    info = find_rank_info(os.environ)
    if info is None:
        return ONE_RANK
    return ManyRanks(info, connect_ranks(info, timeout_s), debug=debug)


def broadcast_object(ranks: Ranks, value: Any) -> Any:
    """Rank 0's value, on all ranks. Every rank must call; only rank 0's `value` counts."""
    return ranks.all_gather_object(value)[0]


def rank0_first(ranks: Ranks, function: Callable[[], Result]) -> Result:
    """Call `function` on rank 0, then on all other ranks; returns this rank's result.

    Every rank must call. `function` must not itself communicate with other ranks. Nothing waits at
    the end: rank 0 continues while the others are still in `function`.
    """
    if ranks.rank != 0:
        ranks.all_gather_object(None)
        return function()
    result = function()
    ranks.all_gather_object(None)
    return result


def check_equal_on_ranks(ranks: Ranks, what: str, facts: dict[str, Any]) -> None:
    """Compare `facts` with those of the other ranks. Every rank must call, with the same names.

    Raises ConfigError, on all ranks, if a fact differs; the message lists those that do, and calls
    them `what`.
    """
    everyone = ranks.all_gather_object(facts)
    lines = []
    for name in facts:
        values = [known.get(name) for known in everyone]
        if any(value != values[0] for value in values):
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            first, second = escaped(values[0]), escaped(values[other])
            lines.append(f"  {name}: {first} on rank 0, {second} on rank {other}")
    if lines:
        raise ConfigError(
            f"the ranks differ in their {what}:\n"
            + "\n".join(lines)
            + "\nStart all ranks with the same command, on the same installation."
        )


def _reason(error: BaseException) -> tuple[str, int]:
    """What to tell the other ranks about an exception, and the exit code."""
    if isinstance(error, CupyGPTError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", INTERRUPTED
    return f"{type(error).__name__}: {error}", FAILED
