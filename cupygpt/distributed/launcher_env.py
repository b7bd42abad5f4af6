"""Who this process is among the ranks of a run, from the environment that its launcher has set.

torchrun and --gpus set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; Open MPI sets
OMPI_COMM_WORLD_*; MPICH and Intel MPI set PMI_*; srun sets SLURM_*. The MPIs and srun do not say
where rank 0 listens, so the ranks have to find an address and a port that all of them agree on.
"""

import os
import random
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    Slurm shows its ids to all users. MPICH has an id on one host only (see `_mpich_job`): set
    MASTER_PORT and CUPYGPT_KEY if several of its runs share hosts.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int
    launcher: str
    key: str = field(repr=False)


AskMpi = Callable[[], tuple[str, int]]
"""Called by all MPI processes: returns the address and port that rank 0 chose."""


def find_rank_info(environ: Mapping[str, str], ask_mpi: AskMpi | None = None) -> RankInfo | None:
    """This process as its environment describes it; None if it is the only one.

    `ask_mpi` replaces the call of mpi4py in tests. Raises ConfigError if variables are missing or
    contradict each other, and names them.
    """
    for read in (_from_torchrun, _from_open_mpi, _from_mpich, _from_slurm):
        info = read(environ, ask_mpi or _ask_mpi4py)
        if info is not None:
            return info if info.world > 1 else None
    return None


def imitates_terminal(environ: Mapping[str, str]) -> bool:
    """Whether the launcher gives every rank a terminal, wherever its own output goes: Open MPI."""
    return "OMPI_COMM_WORLD_RANK" in environ


def _from_torchrun(environ: Mapping[str, str], _: AskMpi) -> RankInfo | None:
    if "WORLD_SIZE" not in environ and "RANK" not in environ:
        return None
    rank, world = _rank_and_world(environ, "RANK", "WORLD_SIZE")
    local_rank = _number(environ, "LOCAL_RANK", default=0 if world == 1 else None)
    address = environ.get("MASTER_ADDR") or LOOPBACK
    if "MASTER_ADDR" not in environ and world > 1:
        raise ConfigError(
            "RANK and WORLD_SIZE are set, but not MASTER_ADDR: set it to the host of rank 0."
        )
    launcher = "another launcher (RANK and WORLD_SIZE are set)"
    port = _port(environ, "RANK and WORLD_SIZE")
    if environ.get(TORCHRUN_STORE) == "True" and PORT not in environ:
        port += 1  # torchrun itself listens on MASTER_PORT
    key = _key(environ, environ.get("TORCHELASTIC_RUN_ID", ""), port)
    return RankInfo(rank, world, local_rank, address, port, launcher, key)


def _from_open_mpi(environ: Mapping[str, str], ask_mpi: AskMpi) -> RankInfo | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    rank, world = _rank_and_world(environ, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    local_rank = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    ranks_here = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", default=0)
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid") or ""
    address, port = _mpi_address(environ, job, ask_mpi, one_host=ranks_here == world)
    return RankInfo(rank, world, local_rank, address, port, "mpirun", _key(environ, job, port))


def _from_mpich(environ: Mapping[str, str], ask_mpi: AskMpi) -> RankInfo | None:
    # srun with PMI sets PMI_RANK too, but not MPI_LOCALRANKID: _from_slurm reads that case.
    if "PMI_SIZE" not in environ or "MPI_LOCALRANKID" not in environ:
        return None
    rank, world = _rank_and_world(environ, "PMI_RANK", "PMI_SIZE")
    local_rank = _number(environ, "MPI_LOCALRANKID")
    ranks_here = _number(environ, "MPI_LOCALNRANKS", default=0)
    one_host = ranks_here == world
    job = environ.get("I_MPI_HYDRA_UUID") or (_mpich_job() if one_host else "")
    address, port = _mpi_address(environ, job, ask_mpi, one_host=one_host)
    return RankInfo(rank, world, local_rank, address, port, "mpirun", _key(environ, job, port))


def _mpich_job() -> str:
    """What the ranks of one MPICH job on this host have in common; no variable names the job.

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


def _from_slurm(environ: Mapping[str, str], _: AskMpi) -> RankInfo | None:
    # Only srun sets the number of tasks of a step. SLURM_NTASKS is also set in a batch script and
    # in an interactive shell, which are single processes.
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return None
    rank, world = _rank_and_world(environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    local_rank = _number(environ, "SLURM_LOCALID")
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    address = environ.get("MASTER_ADDR") or first_host(nodes)
    job = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    port = _port(environ, job=job)
    return RankInfo(rank, world, local_rank, address, port, "srun", _key(environ, job, port))


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[03-05,9],login` begins with gpu03.

    Raises ConfigError if the list is empty.
    """
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes.strip())
    if not match:
        raise ConfigError("SLURM_STEP_NODELIST is empty: set MASTER_ADDR to the host of rank 0.")
    return match[1] + (match[2] or "") + match[3]


def _mpi_address(
    environ: Mapping[str, str], job: str, ask_mpi: AskMpi, *, one_host: bool
) -> tuple[str, int]:
    """Where rank 0 of an MPI job listens."""
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"], _port(environ, job=job)
    if one_host:
        return LOOPBACK, _port(environ, job=job)
    try:
        return ask_mpi()
    except ImportError as error:
        raise ConfigError(
            "mpirun started ranks on several hosts, but the host of rank 0 is not known. Name it "
            "(mpirun -x MASTER_ADDR=<host> ...), or install mpi4py."
        ) from error


def _ask_mpi4py() -> tuple[str, int]:
    """Rank 0's host name and a free port there, sent to all ranks by mpi4py."""
    from mpi4py import MPI

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
    rank, world = _number(environ, rank_name), _number(environ, world_name)
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
