"""All ranks of a run find each other: rank 0 listens, the others connect and say who they are.

Every other rank keeps two connections to rank 0: `control` carries messages in the order of the
program, and on `watch` the watchdogs listen all the time.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cupygpt
from cupygpt.distributed.handshake import identify, introduce
from cupygpt.distributed.launcher_env import LOOPBACK, PORT, RankInfo
from cupygpt.distributed.messages import Closed, MessageSocket
from cupygpt.errors import ConfigError, CupyGPTError, RunError

KINDS = ("control", "watch")
HANDSHAKE_S = 5.0
"""Rank 0 closes a connection that has not identified itself within this time. The other ranks wait
at least as long for rank 0's part of the handshake, and if only one of their connections succeeds,
as long for a refusal on it."""
RETRY_S = 0.05

Joined = dict[tuple[int, str], MessageSocket]
"""The connections that belong to this run so far, by rank and kind."""


@dataclass(frozen=True)
class Connections:
    """The connections of one rank, by the rank at the other end.

    Rank 0 has one of each kind to every other rank; every other rank has one of each to rank 0.
    """

    control: dict[int, MessageSocket]
    watch: dict[int, MessageSocket]


def connect_ranks(info: RankInfo, timeout_s: float) -> Connections:
    """Connect this process with the other ranks.

    Raises ConfigError if the ranks do not fit together or the port is in use, and RunError if a
    rank has not connected after `timeout_s`. A rank that rank 0 refuses ends by SystemExit, because
    rank 0 reports the reason.
    """
    if info.rank == 0:
        return _accept_ranks(info, timeout_s)
    return _connect_to_rank0(info, timeout_s)


def _accept_ranks(info: RankInfo, timeout_s: float) -> Connections:
    joined: Joined = {}
    try:
        with _listen(info) as server:
            deadline = time.monotonic() + timeout_s
            while len(joined) < (info.world - 1) * len(KINDS):
                connection = _accept(server, deadline, info, joined, timeout_s)
                _admit(connection, info, joined)
    except CupyGPTError as error:
        _refuse(joined.values(), error)
        raise
    connections = Connections(
        *({rank: joined[rank, kind] for rank in range(1, info.world)} for kind in KINDS)
    )
    for connection in connections.control.values():
        connection.send({"welcome": True})
    return connections


def _listen(info: RankInfo) -> socket.socket:
    host = LOOPBACK if info.address in (LOOPBACK, "localhost") else ""
    try:
        return socket.create_server((host, info.port), backlog=2 * info.world)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {info.port} of this host, where rank 0 waits for the other "
                f"{info.world - 1}, is in use: another run is starting here, or a rank of a run "
                f"that failed is still there. Choose another port with MASTER_PORT or {PORT}."
            ) from error
        raise ConfigError(
            f"rank 0 cannot listen on port {info.port} ({error.strerror or error}). Choose "
            f"another one with MASTER_PORT or {PORT}."
        ) from error


def _accept(
    server: socket.socket, deadline: float, info: RankInfo, joined: Joined, timeout_s: float
) -> MessageSocket:
    """The next connection, whoever made it. Raises RunError after the deadline."""
    server.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
    try:
        connection, _ = server.accept()
    except TimeoutError:
        missing = [rank for rank in range(1, info.world) if (rank, KINDS[-1]) not in joined]
        raise RunError(
            f"{_ranks(missing)} of {info.world} did not connect to port {info.port} of "
            f"{socket.gethostname()} within {timeout_s:g} s. See whether they were started and "
            f"what they print; --rank-timeout sets how long to wait."
        ) from None
    return MessageSocket(connection)


def _admit(connection: MessageSocket, info: RankInfo, joined: Joined) -> None:
    """Add a connection to those that `joined`; close it if it does not belong to this run."""
    identity = identify(connection, info.key, HANDSHAKE_S)
    if identity is None:
        connection.close()
        return
    try:
        key = _checked(identity, info, joined)
    except ConfigError as error:
        _refuse([connection], error)
        raise
    if key in joined:
        joined[key].close()
    joined[key] = connection


def _checked(identity: dict[str, Any], info: RankInfo, joined: Joined) -> tuple[int, str]:
    """The rank and kind of a connection. Raises ConfigError if it does not fit the others."""
    rank, kind = identity["rank"], identity["kind"]
    if identity["version"] != cupygpt.__version__:
        raise ConfigError(
            f"rank {rank} (on {identity['host']}) runs cupygpt {identity['version']}, rank 0 "
            f"runs {cupygpt.__version__}: install the same version everywhere."
        )
    if identity["world"] != info.world:
        raise ConfigError(
            f"rank {rank} (on {identity['host']}) was started as one of {identity['world']} ranks, "
            f"rank 0 as one of {info.world}. Start all ranks with the same launcher, and give each "
            f"run on this host its own port (MASTER_PORT)."
        )
    # A rank that lost one of its connections closes the other one and makes both again.
    is_double = (rank, kind) in joined and _is_open(joined[rank, kind])
    if not 0 < rank < info.world or is_double:
        raise ConfigError(
            f"two processes say that they are rank {rank} (one on {identity['host']}): each needs "
            f"its own RANK, and each run its own MASTER_PORT."
        )
    return rank, kind


def _is_open(connection: MessageSocket) -> bool:
    """Whether the other end is open; it sends nothing before all ranks have joined."""
    try:
        connection.receive(1e-3)
    except TimeoutError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _refuse(connections: Iterable[MessageSocket], error: CupyGPTError) -> None:
    """Tell the ranks that rank 0 ends with this error."""
    for connection in connections:
        with contextlib.suppress(Closed):
            connection.send({"refused": str(error), "code": error.exit_code})
        connection.close()


def _connect_to_rank0(info: RankInfo, timeout_s: float) -> Connections:
    deadline = time.monotonic() + timeout_s
    reason: Exception | str = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        connected: list[MessageSocket] = []
        try:
            control = _connect(info, "control", left)
            connected.append(control)
            # Rank 0 may refuse this rank before the second connection is made. It then says so on
            # the first one, and listens no longer.
            with contextlib.suppress(OSError):
                connected.append(_connect(info, "watch", left))
            # Rank 0 may have begun to listen just now, and then waits a full timeout_s for the
            # others; hence twice.
            is_complete = len(connected) == len(KINDS)
            answer = control.receive(2 * timeout_s if is_complete else HANDSHAKE_S)
            if "refused" in answer:
                raise SystemExit(int(answer["code"]))
            return Connections({0: control}, {0: connected[1]})
        except SystemExit:
            _close(connected)
            raise
        except OSError as error:
            # Rank 0 does not listen yet, or an earlier run that used this port is just ending.
            reason = error
            _close(connected)
            time.sleep(RETRY_S)
    raise RunError(
        f"rank {info.rank} could not reach rank 0 at {info.address}:{info.port} within "
        f"{timeout_s:g} s ({reason}). See whether rank 0 runs there, whether MASTER_ADDR names its "
        f"host, and whether a firewall closes the port; --rank-timeout sets how long to wait."
    )


def _connect(info: RankInfo, kind: str, timeout_s: float) -> MessageSocket:
    """Connect to rank 0 and say who this is. Raises OSError if rank 0 is not there."""
    connection = socket.create_connection((info.address, info.port), timeout=timeout_s)
    messages = MessageSocket(connection)
    identity = {
        "kind": kind,
        "rank": info.rank,
        "world": info.world,
        "host": socket.gethostname(),
        "version": cupygpt.__version__,
    }
    try:
        # While nobody listens, Linux may give our outgoing socket the very port that it connects
        # to; TCP then connects it to itself.
        if connection.getsockname() == connection.getpeername():
            raise ConnectionError("rank 0 does not listen yet")
        introduce(messages, info.key, identity, max(timeout_s, HANDSHAKE_S))
    except OSError:
        messages.close()
        raise
    return messages


def _close(connections: Sequence[MessageSocket]) -> None:
    for connection in connections:
        connection.close()


def _ranks(numbers: Sequence[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))
