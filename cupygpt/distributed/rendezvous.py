"""All ranks of a run find each other: rank 0 listens, the others connect and say who they are.

Every other rank keeps two connections to rank 0: `control` for messages in the order of the
program, and `watch`, on which the watchdogs listen all the time.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cupygpt
from cupygpt.distributed.launcher_env import LOOPBACK, PORT, RankInfo
from cupygpt.distributed.messages import Closed, Wire
from cupygpt.errors import ConfigError, CupyGPTError, RunError

GREETING = "cupygpt ranks, protocol 1"
KINDS = ("control", "watch")
HELLO_S = 5.0
"""Whoever connects and does not say hello within this is no rank of ours."""
RETRY_S = 0.05


@dataclass(frozen=True)
class Meeting:
    """The connections of one rank, by the rank at their other end.

    Rank 0 has one of each kind to every other rank, the others have theirs to rank 0.
    """

    control: dict[int, Wire]
    watch: dict[int, Wire]


def meet(place: RankInfo, timeout_s: float) -> Meeting:
    """Connect this process with the other ranks.

    Raises ConfigError where ranks do not fit together or the port is taken, and RunError if one
    has not come after `timeout_s`. A rank that rank 0 turned away ends by SystemExit, because rank
    0 reports the reason.
    """
    if place.rank == 0:
        return _receive_all(place, timeout_s)
    return _join_first(place, timeout_s)


def _receive_all(place: RankInfo, timeout_s: float) -> Meeting:
    guests: dict[tuple[int, str], Wire] = {}
    strangers: list[Wire] = []
    try:
        with _listen(place) as server:
            deadline = time.monotonic() + timeout_s
            while len(guests) < (place.world - 1) * len(KINDS):
                wire = _accept(server, deadline, place, guests, timeout_s)
                strangers.append(wire)
                hello = _hello_of(wire)
                if hello is not None:
                    key = _checked(hello, place, guests)
                    guests[key] = strangers.pop()
    except CupyGPTError as error:
        for wire in [*guests.values(), *strangers]:
            with contextlib.suppress(Closed):
                wire.send({"refused": str(error), "code": error.exit_code})
            wire.close()
        raise
    _close(strangers)
    meeting = Meeting(
        *({rank: guests[rank, kind] for rank in range(1, place.world)} for kind in KINDS)
    )
    for wire in meeting.control.values():
        wire.send({"welcome": True})
    return meeting


def _listen(place: RankInfo) -> socket.socket:
    host = LOOPBACK if place.address in (LOOPBACK, "localhost") else ""
    try:
        return socket.create_server((host, place.port), backlog=2 * place.world)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {place.port} of this host, where rank 0 waits for the other "
                f"{place.world - 1}, is in use: another run is starting here, or a rank of one "
                f"that ended badly is still there. Choose another port with MASTER_PORT or {PORT}."
            ) from error
        raise ConfigError(
            f"rank 0 cannot listen on port {place.port} ({error.strerror or error}). Choose "
            f"another one with MASTER_PORT or {PORT}."
        ) from error


def _accept(
    server: socket.socket,
    deadline: float,
    place: RankInfo,
    guests: dict[tuple[int, str], Wire],
    timeout_s: float,
) -> Wire:
    server.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
    try:
        connection, _ = server.accept()
    except TimeoutError:
        missing = [r for r in range(1, place.world) if (r, KINDS[-1]) not in guests]
        raise RunError(
            f"{_ranks(missing)} of {place.world} did not come to port {place.port} of "
            f"{socket.gethostname()} within {timeout_s:g} s. See whether they were started and "
            f"what they print; --rank-timeout sets how long to wait."
        ) from None
    return Wire(connection)


def _hello_of(wire: Wire) -> dict[str, Any] | None:
    """What the newcomer says of itself; None if it is not one of ours."""
    try:
        hello = wire.receive(HELLO_S)
    except (Closed, TimeoutError, ValueError):
        return None
    return hello if isinstance(hello, dict) and hello.get("greeting") == GREETING else None


def _checked(
    hello: dict[str, Any], place: RankInfo, guests: dict[tuple[int, str], Wire]
) -> tuple[int, str]:
    rank, kind = hello["rank"], hello["kind"]
    if hello["version"] != cupygpt.__version__:
        raise ConfigError(
            f"rank {rank} (on {hello['host']}) runs cupygpt {hello['version']}, rank 0 "
            f"{cupygpt.__version__}: install the same version everywhere."
        )
    if hello["world"] != place.world:
        raise ConfigError(
            f"rank {rank} (on {hello['host']}) was started as one of {hello['world']} ranks, rank "
            f"0 as one of {place.world}. Start all with the same launcher, or give runs on the "
            f"same host ports of their own (MASTER_PORT)."
        )
    if not 0 < rank < place.world or (rank, kind) in guests:
        raise ConfigError(
            f"two processes say they are rank {rank} (one on {hello['host']}): each needs a RANK "
            f"of its own, and each run a MASTER_PORT of its own."
        )
    return rank, kind


def _join_first(place: RankInfo, timeout_s: float) -> Meeting:
    deadline = time.monotonic() + timeout_s
    reason: Exception | str = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        wires: list[Wire] = []
        try:
            control = _greet(place, "control", left)
            wires.append(control)
            # Rank 0 may turn this one away before the second connection: then it says so on the
            # first, and nobody listens any more.
            with contextlib.suppress(OSError):
                wires.append(_greet(place, "watch", left))
            # Rank 0 may have come last, and waits as long for the others.
            answer = control.receive(2 * timeout_s if len(wires) == len(KINDS) else HELLO_S)
            if "refused" in answer:
                raise SystemExit(int(answer["code"]))
            return Meeting({0: control}, {0: wires[1]})
        except SystemExit:
            _close(wires)
            raise
        except OSError as error:
            # Not there yet, or the end of an earlier run that went away without a word.
            reason = error
            _close(wires)
            time.sleep(RETRY_S)
    raise RunError(
        f"rank {place.rank} could not reach rank 0 at {place.address}:{place.port} within "
        f"{timeout_s:g} s ({reason}). See whether rank 0 runs there, whether MASTER_ADDR names its "
        f"host, and whether a firewall closes the port; --rank-timeout sets how long to wait."
    )


def _greet(place: RankInfo, kind: str, timeout_s: float) -> Wire:
    """Connect to rank 0 and say who this is. OSError where nobody is there to hear it."""
    connection = socket.create_connection((place.address, place.port), timeout=timeout_s)
    wire = Wire(connection)
    hello = {
        "greeting": GREETING,
        "kind": kind,
        "rank": place.rank,
        "world": place.world,
        "host": socket.gethostname(),
        "version": cupygpt.__version__,
    }
    try:
        # Before rank 0 listens, the system may connect a port with itself.
        if connection.getsockname() == connection.getpeername():
            raise ConnectionError("nobody listens yet")
        wire.send(hello)
    except OSError:
        wire.close()
        raise
    return wire


def _close(wires: Sequence[Wire]) -> None:
    for wire in wires:
        wire.close()


def _ranks(numbers: Sequence[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))
