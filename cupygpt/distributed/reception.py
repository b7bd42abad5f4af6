"""Rank 0 listens, and hears all who connect side by side until it knows whose connection it is.

Nobody can hold up the others: a greeting has a deadline and a greatest size. A connection that is
too slow is closed when its time is over, and one that sends something else at once; neither has any
other effect. All of this runs on the thread that waits for the ranks.
"""

import contextlib
import errno
import ipaddress
import selectors
import socket
import time
from types import TracebackType

from cupygpt.distributed.handshake import Guest, Identity
from cupygpt.distributed.launcher_env import PORT, RankInfo
from cupygpt.distributed.messages import MessageSocket
from cupygpt.errors import ConfigError

GREETING_S = 5.0
"""Rank 0 closes a connection that has not proved within this time that it belongs to the run."""
MOST_GUESTS = 128
"""With more connections at a time, the one that has waited longest is closed: a rank answers within
milliseconds, and tries again when it is closed."""
PAUSE_S = 0.05
"""After the system could not accept a connection, for lack of file descriptors for example."""
ANY_ADDRESS = "0.0.0.0"


class Reception:
    """The port of rank 0, while it waits for the other ranks."""

    def __init__(self, info: RankInfo) -> None:
        self._key = info.key
        self._most = MOST_GUESTS + 2 * info.world
        self._guests: dict[Guest, float] = {}  # with their deadlines, the oldest first
        self._server = listen(info)
        self._server.settimeout(0.0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)

    def next_rank(self, deadline: float) -> tuple[Identity, MessageSocket]:
        """The next connection that proved the run's key. Raises TimeoutError at the `deadline`."""
        while True:
            now = time.monotonic()
            self._close_late(now)
            if now >= deadline:
                raise TimeoutError("timed out")
            wake_up = min([deadline, *self._guests.values()])
            for selected, _ in self._selector.select(wake_up - now):
                guest = selected.data
                if guest is None:
                    self._accept()
                elif guest in self._guests:
                    identity = self._hear(guest)
                    if identity is not None:
                        return identity, guest.connection

    def _accept(self) -> None:
        try:
            accepted, _ = self._server.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # the other side has given up already
        except OSError:
            time.sleep(PAUSE_S)
            return
        try:
            guest = Guest(MessageSocket(accepted), self._key)
        except OSError:
            accepted.close()
            return
        if len(self._guests) >= self._most:
            self._turn_away(next(iter(self._guests)))
        self._guests[guest] = time.monotonic() + GREETING_S
        self._selector.register(guest.connection, selectors.EVENT_READ, guest)

    def _hear(self, guest: Guest) -> Identity | None:
        try:
            identity = guest.hear()
        except OSError:  # Closed, or no file descriptor is left to wait with
            self._turn_away(guest)
            return None
        if identity is not None:
            self._forget(guest)
        return identity

    def _close_late(self, now: float) -> None:
        for guest in [guest for guest, deadline in self._guests.items() if deadline <= now]:
            self._turn_away(guest)

    def _turn_away(self, guest: Guest) -> None:
        self._forget(guest)
        guest.connection.close()

    def _forget(self, guest: Guest) -> None:
        del self._guests[guest]
        self._selector.unregister(guest.connection)

    def __enter__(self) -> "Reception":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for guest in list(self._guests):
            self._turn_away(guest)
        self._selector.close()
        self._server.close()


def listen(info: RankInfo) -> socket.socket:
    """A socket that listens where the other ranks will connect: at `info.address`.

    Where that name means only this host (127.0.1.1, as some systems set it), and ranks may be on
    others, it listens on all addresses.

    Raises ConfigError if this host has no such address, or the port is in use.
    """
    last = OSError(errno.EADDRNOTAVAIL, "it names no address")
    for family, host in _own_addresses(info):
        try:
            return socket.create_server(
                (host, info.port), family=family, backlog=MOST_GUESTS + 2 * info.world
            )
        except OSError as error:
            last = error
            if error.errno == errno.EADDRINUSE:
                break
    raise _cannot_listen(info, last) from last


def _own_addresses(info: RankInfo) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses that the name of rank 0's host has here, IPv4 first.

    Many systems give their own name the address 127.0.1.1, which other hosts do not see. Where the
    ranks may be on several hosts, rank 0 then listens on all addresses of this host.
    """
    try:
        found = socket.getaddrinfo(info.address, info.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"MASTER_ADDR is {info.address!r}, which this host cannot look up "
            f"({getattr(error, 'strerror', None) or error}): set it to the host of rank 0."
        ) from None
    addresses: list[tuple[socket.AddressFamily, str]] = sorted(
        {(family, str(place[0])) for family, _, _, _, place in found},
        key=lambda one: (one[0] != socket.AF_INET, one[1]),
    )
    if (
        not info.one_host
        and not info.address.startswith(("localhost", "ip6-localhost"))
        and not _is_number(info.address)
        and all(_is_loopback(host) for _, host in addresses)
    ):
        return [(socket.AF_INET, ANY_ADDRESS)]
    return addresses


def _is_number(address: str) -> bool:
    """Whether an address is written in numbers, and is no name."""
    with contextlib.suppress(OSError, UnicodeError):
        return bool(socket.getaddrinfo(address, None, flags=socket.AI_NUMERICHOST))
    return False


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def _cannot_listen(info: RankInfo, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {info.port} of this host, where rank 0 waits for the other "
            f"{info.world - 1}, is in use: another run is starting here, or a rank of a run "
            f"that failed is still there. Choose another port with MASTER_PORT or {PORT}."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"rank 0 cannot listen at {info.address}: {socket.gethostname()} has no such address. "
            f"Set MASTER_ADDR to the host of rank 0. If the other ranks reach this host through a "
            f"router that changes addresses, set MASTER_ADDR={ANY_ADDRESS} for rank 0 alone."
        )
    return ConfigError(
        f"rank 0 cannot listen on port {info.port} of {info.address} ({error.strerror or error}). "
        f"Choose another one with MASTER_PORT or {PORT}."
    )
