"""All ranks of a run find each other: rank 0 listens, the others connect and say who they are.

How rank 0 listens is in reception.py, and how both ends prove that they belong to the run in
handshake.py.
"""

import contextlib
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cupygpt
from cupygpt.distributed.handshake import KINDS, Identity, introduce
from cupygpt.distributed.launcher_env import RankInfo
from cupygpt.distributed.messages import Closed, MessageSocket, escaped
from cupygpt.distributed.reception import GREETING_S, Reception
from cupygpt.distributed.watchdog import exit_code_of
from cupygpt.errors import ConfigError, CupyGPTError, RunError

ANSWER_S = 2 * GREETING_S
"""The other ranks wait so long for rank 0's part of the handshake, and then try again. If only one
of their connections succeeds, they wait as long for a refusal on it."""
RETRY_S = 0.05
WELCOME = {"welcome": True}
"""What rank 0 sends to all when all have joined."""

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
        with Reception(info) as reception:
            deadline = time.monotonic() + timeout_s
            while len(joined) < (info.world - 1) * len(KINDS):
                _admit(reception, deadline, info, joined, timeout_s)
    except CupyGPTError as error:
        _refuse(joined.values(), error)
        raise
    connections = Connections(
        *({rank: joined[rank, kind] for rank in range(1, info.world)} for kind in KINDS)
    )
    for connection in connections.control.values():
        connection.send(WELCOME)
    return connections


def _admit(
    reception: Reception, deadline: float, info: RankInfo, joined: Joined, timeout_s: float
) -> None:
    """Add the next connection to those that `joined`. Raises RunError after the deadline."""
    try:
        identity, connection = reception.next_rank(deadline)
    except TimeoutError:
        missing = [rank for rank in range(1, info.world) if (rank, KINDS[-1]) not in joined]
        raise RunError(
            f"{_ranks(missing)} of {info.world} did not connect to port {info.port} of "
            f"{socket.gethostname()} within {timeout_s:g} s. See whether they were started and "
            f"what they print; --rank-timeout sets how long to wait."
        ) from None
    try:
        _check(identity, info, joined)
    except ConfigError as error:
        _refuse([connection], error)
        raise
    place = identity.rank, identity.kind
    if place in joined:
        joined[place].close()
    joined[place] = connection


def _check(identity: Identity, info: RankInfo, joined: Joined) -> None:
    """Raise ConfigError if a rank of this run does not fit the others."""
    rank, host = identity.rank, escaped(identity.host)
    if identity.version != cupygpt.__version__:
        raise ConfigError(
            f"rank {rank} (on {host}) runs cupygpt {escaped(identity.version)}, rank 0 "
            f"runs {cupygpt.__version__}: install the same version everywhere."
        )
    if identity.world != info.world:
        raise ConfigError(
            f"rank {rank} (on {host}) was started as one of {identity.world} ranks, "
            f"rank 0 as one of {info.world}. Start all ranks with the same launcher, and give each "
            f"run on this host its own port (MASTER_PORT)."
        )
    # A rank that lost one of its connections closes the other one and makes both again.
    place = rank, identity.kind
    is_double = place in joined and _is_open(joined[place])
    if not 0 < rank < info.world or is_double:
        raise ConfigError(
            f"two processes say that they are rank {rank} (one on {host}): each needs "
            f"its own RANK, and each run its own MASTER_PORT."
        )


def _is_open(connection: MessageSocket) -> bool:
    """Whether the other end is open; it sends nothing before all ranks have joined."""
    try:
        connection.receive(1e-3)
    except TimeoutError:
        return True
    except OSError:
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
            answer = control.receive(2 * timeout_s if is_complete else ANSWER_S)
            if isinstance(answer, dict) and "refused" in answer:
                raise SystemExit(exit_code_of(answer))
            if answer != WELCOME or not is_complete:
                raise Closed("the other side speaks another protocol")
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
    identity = Identity(kind, info.rank, info.world, socket.gethostname(), cupygpt.__version__)
    try:
        # While nobody listens, Linux may give our outgoing socket the very port that it connects
        # to; TCP then connects it to itself.
        if connection.getsockname() == connection.getpeername():
            raise ConnectionError("rank 0 does not listen yet")
        introduce(messages, info.key, identity, ANSWER_S)
    except OSError:
        messages.close()
        raise
    return messages


def _close(connections: Sequence[MessageSocket]) -> None:
    for connection in connections:
        connection.close()


def _ranks(numbers: Sequence[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))
