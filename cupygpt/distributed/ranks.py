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
from cupygpt.distributed.messages import Closed, Wire
from cupygpt.distributed.rendezvous import Meeting, meet
from cupygpt.distributed.watchdog import FAILED, Watchdog, die
from cupygpt.errors import ConfigError, CupyGPTError, RunError

HEAD_START_S = 2.0
"""Where a connection breaks, the watchdog knows why: it gets so long to end the process."""

Result = TypeVar("Result")


class Ranks(Protocol):
    """This process among the ranks of its run."""

    rank: int
    world: int
    local_rank: int

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; every rank must call. JSON types only."""

    def on_abort(self, advice: Callable[[], str]) -> None:
        """What to say at the end if another rank dies: a function that returns a sentence."""


class OneRank:
    """The only process of its run."""

    rank, world, local_rank = 0, 1, 0

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of the only rank."""
        return [value]

    def on_abort(self, advice: Callable[[], str]) -> None:
        """Nothing: no other rank can die."""

    def __enter__(self) -> "OneRank":
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class ManyRanks:
    """One of several processes that have met. As a context manager it ends all together.

    An exception that leaves the block ends the other ranks too, with its message, which rank 0
    prints. Without one, leaving waits for the others. `end` is what the watchdog calls with an exit
    code where another rank has died.
    """

    def __init__(
        self,
        place: RankInfo,
        meeting: Meeting,
        *,
        debug: bool = False,
        end: Callable[[int], None] = die,
    ) -> None:
        self._debug = debug
        self.rank, self.world, self.local_rank = place.rank, place.world, place.local_rank
        self._control = meeting.control
        self._watchdog = Watchdog(place.rank, meeting.watch, end=end)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; through rank 0."""
        with self.connection_errors():
            if self.rank:
                self.first.send(value)
                values: list[Any] = self.first.receive()
            else:
                values = [value] + [self.others[rank].receive() for rank in range(1, self.world)]
                for wire in self.others.values():
                    wire.send(values)
        return values

    @property
    def first(self) -> Wire:
        """The connection to rank 0, for the others."""
        return self._control[0]

    @property
    def others(self) -> dict[int, Wire]:
        """Rank 0's connections to the others."""
        return self._control

    @contextlib.contextmanager
    def connection_errors(self) -> Iterator[None]:
        """A connection that breaks inside the block ends the process, or raises RunError."""
        try:
            yield
        except Closed as error:
            time.sleep(HEAD_START_S)
            raise RunError(f"the connection to another rank broke ({error}).") from error

    def on_abort(self, advice: Callable[[], str]) -> None:
        """What the watchdog adds when it reports an end."""
        self._watchdog.advice = advice

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
            for wire in self._control.values():
                wire.close()
            return
        reason, code = _reason(error)
        is_reported = self._watchdog.fail(reason, code)
        if is_reported and isinstance(error, CupyGPTError) and not self._debug:
            sys.stdout.flush()
            raise SystemExit(code) from error


def join_ranks(timeout_s: float, *, debug: bool = False) -> OneRank | ManyRanks:
    """This process among the ranks that its launcher started; waits for the others.

    Raises ConfigError or RunError where they do not come together (see `meet`). With `debug` each
    rank shows its own errors, besides rank 0.
    """
    place = find_rank_info(os.environ)
    if place is None:
        return OneRank()
    return ManyRanks(place, meet(place, timeout_s), debug=debug)


def broadcast_object(ranks: Ranks, value: Any) -> Any:
    """Rank 0's value on all ranks."""
    return ranks.all_gather_object(value)[0]


def rank0_first(ranks: Ranks, function: Callable[[], Result], *, is_first: bool) -> Result:
    """What `function` returns; where `is_first` it is called before the others call it."""
    if not is_first:
        ranks.all_gather_object(None)
        return function()
    result = function()
    ranks.all_gather_object(None)
    return result


def check_equal_on_ranks(ranks: Ranks, what: str, facts: dict[str, Any]) -> None:
    """Raise ConfigError, on all ranks alike, with a list of what differs between them."""
    everyone = ranks.all_gather_object(facts)
    lines = []
    for name in facts:
        values = [known.get(name) for known in everyone]
        if any(value != values[0] for value in values):
            first = next(rank for rank, value in enumerate(values) if value != values[0])
            lines.append(f"  {name}: {values[0]} on rank 0, {values[first]} on rank {first}")
    if lines:
        raise ConfigError(
            f"the ranks differ in their {what}:\n"
            + "\n".join(lines)
            + "\nStart all ranks with the same command, on the same installation."
        )


def _reason(error: BaseException) -> tuple[str, int]:
    if isinstance(error, CupyGPTError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", INTERRUPTED
    return f"{type(error).__name__}: {error}", FAILED
