"""Who this process is among the ranks of a run, from the environment that its launcher has set.

torchrun and --gpus set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; srun sets
SLURM_*; launchers.py lists what the others set. Most do not say where rank 0 listens, so the ranks
have to find an address and a port that all of them agree on. A process that is the only one of its
launcher needs none of this.
"""

import os
import random
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cupygpt.distributed.launchers import LAUNCHERS, SIGNS_OF_SEVERAL, Launcher
from cupygpt.errors import ConfigError

LOOPBACK = "127.0.0.1"
TORCHRUN_STORE = "TORCHELASTIC_USE_AGENT_STORE"
PORT = "CUPYGPT_PORT"
"""With launchers other than --gpus, sets the port of rank 0, whatever MASTER_PORT says."""
KEY = "CUPYGPT_KEY"
"""With launchers other than --gpus, sets the run's key; --gpus chooses one."""

FIRST_PORT, NUM_PORTS = 20000, 10000
"""Below the ports that systems use for outgoing connections (from 32768 on Linux)."""


@dataclass(frozen=True)
class RankInfo:
    """One process among all: its rank, the number of ranks, its number on this host.

    Rank 0 listens at `address` and `port`; `launcher` names the launcher in error messages.

    `key` is what a process must know to connect as a rank (see handshake.py). --gpus chooses it at
    random; with other launchers CUPYGPT_KEY sets it by hand, and should be a long random text. Both
    keep out everyone who cannot read the environment of the ranks. Without these the key is derived
    from the port and from the id of the launcher's job. Such a key keeps out other runs and
    programs that connect by mistake. It does not keep out a person who means harm and knows the id:
    Slurm shows its ids to all users. MPICH has an id on one host only (see `_job_of_this_host`):
    set MASTER_PORT and CUPYGPT_KEY if several of its runs share hosts.

    `one_host`: whether the launcher says that all ranks are on this host.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int
    launcher: str
    key: str = field(repr=False)
    one_host: bool = False


ALONE = RankInfo(0, 1, 0, LOOPBACK, 0, "", "", one_host=True)
"""A process that its launcher started as the only one."""

AskMpi = Callable[[], tuple[str, int]]
"""Called by all MPI processes: returns the address and port that rank 0 chose."""


def find_rank_info(environ: Mapping[str, str], ask_mpi: AskMpi | None = None) -> RankInfo | None:
    """This process as its environment describes it; None if it is the only one.

    `ask_mpi` replaces the call of mpi4py in tests. Raises ConfigError if variables are missing or
    contradict each other, and names them; also if they show that there are several processes, but
    not which one this is.
    """
    info = _from_torchrun(environ)
    for launcher in LAUNCHERS:
        if info is None:
            info = _from_launcher(launcher, environ, ask_mpi)
    if info is None:
        _refuse_unknown_launcher(environ)
    return info if info is not None and info.world > 1 else None


def imitates_terminal(environ: Mapping[str, str]) -> bool:
    """Whether the launcher gives every rank a terminal, wherever its own output goes: Open MPI."""
    return "OMPI_COMM_WORLD_RANK" in environ


def _from_torchrun(environ: Mapping[str, str]) -> RankInfo | None:
    if "WORLD_SIZE" not in environ and "RANK" not in environ:
        return None
    rank, world = _rank_and_world(environ, "RANK", "WORLD_SIZE")
    if world == 1:
        return ALONE
    local_rank = _number(environ, "LOCAL_RANK")
    address = environ.get("MASTER_ADDR") or LOOPBACK
    if "MASTER_ADDR" not in environ:
        raise ConfigError(
            "RANK and WORLD_SIZE are set, but not MASTER_ADDR: set it to the host of rank 0."
        )
    launcher = "another launcher (RANK and WORLD_SIZE are set)"
    port = _port(environ, "RANK and WORLD_SIZE")
    if environ.get(TORCHRUN_STORE) == "True" and PORT not in environ:
        port += 1  # torchrun itself listens on MASTER_PORT
    key = _key(environ, environ.get("TORCHELASTIC_RUN_ID", ""), port)
    one_host = environ.get("LOCAL_WORLD_SIZE") == str(world)
    return RankInfo(rank, world, local_rank, address, port, launcher, key, one_host)


def _from_launcher(
    launcher: Launcher, environ: Mapping[str, str], ask_mpi: AskMpi | None
) -> RankInfo | None:
    """This process as `launcher` describes it; None if it did not start it."""
    if launcher.world not in environ or (launcher.also and launcher.also not in environ):
        return None
    rank, world = _rank_and_world(environ, launcher.rank, launcher.world)
    if world == 1 or _was_typed_in_a_shell(environ, launcher):
        return ALONE
    if launcher.local_rank not in environ:
        raise _unknown_launcher(launcher.world, environ[launcher.world])
    local_rank = _number(environ, launcher.local_rank)
    one_host = environ.get(launcher.ranks_here) == str(world) or environ.get(launcher.hosts) == "1"
    ids = [environ[name] for name in launcher.job if name in environ]
    job = ".".join(ids) or (_job_of_this_host() if one_host else "")
    address = environ.get("MASTER_ADDR") or (LOOPBACK if one_host else "")
    if not address and launcher.host_list in environ:
        address = first_host(environ[launcher.host_list])
    if address:
        port = _port(environ, job=job)
    else:
        address, port = _address_from_mpi(launcher, world, ask_mpi)
    key = _key(environ, job, port)
    return RankInfo(rank, world, local_rank, address, port, launcher.name, key, one_host)


def _was_typed_in_a_shell(environ: Mapping[str, str], launcher: Launcher) -> bool:
    """Whether a person started this process in the shell of `srun --pty`: then it is alone.

    The shell is a task of srun, and hands srun's variables on. An interactive shell puts each
    command into a process group of its own. The processes that srun starts, also through a script,
    are in the group of their task.
    """
    if launcher.terminal not in environ:
        return False
    try:
        return os.getpgid(_number(environ, launcher.task)) != os.getpgrp()
    except (ConfigError, OSError):
        return True  # no such variable, or no such process here


def _job_of_this_host() -> str:
    """What the ranks of one job on this host have in common, if no variable names the job.

    It is the user, and the process that started the ranks. MPICH starts each rank in its own
    session, so this is the parent of the session's first process, even if a script stands between.
    """
    user = f"user {os.getuid()}"
    try:
        status = Path(f"/proc/{os.getsid(0)}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return user  # not Linux, or a container hides the process
    _state, parent = status.rpartition(")")[2].split()[:2]
    return f"{user}, process {parent}"


def _refuse_unknown_launcher(environ: Mapping[str, str]) -> None:
    """Raise ConfigError if several processes were started, in a way that is not known here."""
    for name, is_sign in SIGNS_OF_SEVERAL.items():
        if name in environ and is_sign(environ[name]):
            raise _unknown_launcher(name, environ[name])


def _unknown_launcher(name: str, value: str) -> ConfigError:
    return ConfigError(
        f"{name} is {value}: a launcher that is not known here has started several processes, or "
        f"may have. Each would train alone, at the same time as the others. Set RANK, WORLD_SIZE, "
        f"LOCAL_RANK, MASTER_ADDR and MASTER_PORT in each process from the launcher's variables; "
        f"or RANK=0 and WORLD_SIZE=1 if it shall train alone."
    )


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[03-05,9],login` begins with gpu03.

    Raises ConfigError if the list is empty.
    """
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes.strip())
    if not match:
        raise ConfigError("srun's list of hosts is empty: set MASTER_ADDR to the host of rank 0.")
    return match[1] + (match[2] or "") + match[3]


def _address_from_mpi(launcher: Launcher, world: int, ask_mpi: AskMpi | None) -> tuple[str, int]:
    """Where rank 0 listens, if no variable says it: its host, and a free port there."""
    try:
        return ask_mpi() if ask_mpi else _ask_mpi4py(world)
    except ImportError as error:
        raise ConfigError(
            f"{launcher.name} started ranks on several hosts, or may have, but the host of rank 0 "
            f"is not known. Set MASTER_ADDR to it on all ranks (with Open MPI: mpirun -x "
            f"MASTER_ADDR=<host> ...), or install mpi4py."
        ) from error


def _ask_mpi4py(world: int) -> tuple[str, int]:
    """Rank 0's host name and a free port there, sent to all ranks by mpi4py."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.size != world:
        raise ConfigError(
            f"mpi4py sees {MPI.COMM_WORLD.size} processes, the launcher started {world}: mpi4py "
            f"was built for another MPI. Set MASTER_ADDR to the host of rank 0 on all ranks."
        )
    port = free_port("")
    address, chosen = MPI.COMM_WORLD.bcast((socket.gethostname(), port), root=0)
    return str(address), int(chosen)


def free_port(host: str) -> int:
    """A port of `host` on which nothing listens at the moment.

    It is outside the system's range for outgoing connections: otherwise a rank that connects
    before rank 0 listens could be given that same port, and would be connected with itself.
    """
    for port in random.sample(range(FIRST_PORT, FIRST_PORT + NUM_PORTS), 100):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ConfigError(
        f"no free port found between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS}: set one in {PORT}."
    )


def _port(environ: Mapping[str, str], what: str = "", *, job: str | None = None) -> int:
    """CUPYGPT_PORT, else MASTER_PORT, else a port that follows from the id of the `job`."""
    for name in (PORT, "MASTER_PORT"):
        if name in environ:
            port = _number(environ, name)
            if not 1 <= port < 65535:  # with torchrun, rank 0 takes the next one
                raise ConfigError(f"{name} is {port}: ports are numbers from 1 to 65534.")
            return port
    if job is None:
        raise ConfigError(f"{what} are set, but not MASTER_PORT: set it to any free port.")
    return FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS


def _key(environ: Mapping[str, str], job: str, port: int) -> str:
    """CUPYGPT_KEY, else what the ranks of a job have in common; see `RankInfo`."""
    key = environ.get(KEY, f"job {job}, port {port}")
    if not key:
        raise ConfigError(
            f"{KEY} is empty: set it to the same secret text on all ranks, or unset it."
        )
    return key


def _rank_and_world(environ: Mapping[str, str], rank_name: str, world_name: str) -> tuple[int, int]:
    world = _number(environ, world_name)
    rank = _number(environ, rank_name, default=0 if world == 1 else None)
    if not 0 <= rank < world:
        raise ConfigError(
            f"{rank_name} is {rank} and {world_name} is {world}: ranks count from 0 to "
            f"{world_name} - 1. Start all ranks with the same launcher."
        )
    return rank, world


def _number(environ: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None:
        if default is not None:
            return default
        raise ConfigError(f"{name} is not set, though the launcher's other variables are.")
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise ConfigError(f"{name} is {text!r}, but must be a number.")
    return int(text)
