"""Who this process is among the ranks of a run, as told by whatever launched it.

torchrun and --gpus set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; Open MPI sets
OMPI_COMM_WORLD_*; MPICH and Intel MPI PMI_*; srun SLURM_*. The last three leave open where the
ranks meet, so that has to be found.
"""

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cupygpt.errors import ConfigError

LOOPBACK = "127.0.0.1"
TORCHRUN_STORE = "TORCHELASTIC_USE_AGENT_STORE"
PORT = "CUPYGPT_PORT"
"""Names the port whatever the launcher says."""

FIRST_PORT, NUM_PORTS = 20000, 10000
"""Ports below those that systems hand out for outgoing connections (from 32768 on Linux)."""


@dataclass(frozen=True)
class RankInfo:
    """One process among all: its rank, how many there are, its number on this host.

    Rank 0 listens at `address` and `port`; `launcher` is for messages.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int
    launcher: str


MpiMeeting = Callable[[], tuple[str, int]]
"""Collective over all MPI processes: the address and port that rank 0 chose."""


def find_rank_info(
    environ: Mapping[str, str], mpi_meeting: MpiMeeting | None = None
) -> RankInfo | None:
    """The place that the environment gives this process; None where it runs alone.

    `mpi_meeting` stands in for mpi4py's (see `_ask_mpi`). Raises ConfigError for variables that
    are incomplete or contradict each other, with their names.
    """
    for read in (_from_torchrun, _from_open_mpi, _from_mpich, _from_slurm):
        place = read(environ, mpi_meeting)
        if place is not None:
            return place if place.world > 1 else None
    return None


def imitates_terminal(environ: Mapping[str, str]) -> bool:
    """Whether the launcher gives its ranks a terminal whatever its own output goes to: Open MPI."""
    return "OMPI_COMM_WORLD_RANK" in environ


def _from_torchrun(environ: Mapping[str, str], _: MpiMeeting | None) -> RankInfo | None:
    if "WORLD_SIZE" not in environ and "RANK" not in environ:
        return None
    rank, world = _rank_of_world(environ, "RANK", "WORLD_SIZE")
    local_rank = _number(environ, "LOCAL_RANK", default=0 if world == 1 else None)
    address = environ.get("MASTER_ADDR") or LOOPBACK
    if "MASTER_ADDR" not in environ and world > 1:
        raise ConfigError(
            "RANK and WORLD_SIZE are set, but not MASTER_ADDR: set it to the host of rank 0."
        )
    port = _port(environ, "RANK and WORLD_SIZE")
    if environ.get(TORCHRUN_STORE) == "True" and PORT not in environ:
        port += 1  # torchrun itself listens on MASTER_PORT
    return RankInfo(rank, world, local_rank, address, port, "RANK and WORLD_SIZE")


def _from_open_mpi(environ: Mapping[str, str], meeting: MpiMeeting | None) -> RankInfo | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    rank, world = _rank_of_world(environ, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    local_rank = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    here = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", default=0)
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid") or ""
    address, port = _mpi_address(environ, all_here=here == world, job=job, meeting=meeting)
    return RankInfo(rank, world, local_rank, address, port, "mpirun")


def _from_mpich(environ: Mapping[str, str], meeting: MpiMeeting | None) -> RankInfo | None:
    # srun with PMI sets PMI_RANK too, but not hydra's local id: that case is Slurm's.
    if "PMI_SIZE" not in environ or "MPI_LOCALRANKID" not in environ:
        return None
    rank, world = _rank_of_world(environ, "PMI_RANK", "PMI_SIZE")
    local_rank = _number(environ, "MPI_LOCALRANKID")
    here = _number(environ, "MPI_LOCALNRANKS", default=0)
    address, port = _mpi_address(
        environ, all_here=here == world, job=environ.get("PMI_ID", ""), meeting=meeting
    )
    return RankInfo(rank, world, local_rank, address, port, "mpirun")


def _from_slurm(environ: Mapping[str, str], _: MpiMeeting | None) -> RankInfo | None:
    # Only srun sets the step's number of tasks. SLURM_NTASKS is also there inside a batch script
    # and an interactive shell, where a single process is meant.
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return None
    rank, world = _rank_of_world(environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    local_rank = _number(environ, "SLURM_LOCALID")
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    address = environ.get("MASTER_ADDR") or first_host(nodes)
    job = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    return RankInfo(rank, world, local_rank, address, _port(environ, job=job), "srun")


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[03-05,9],login` begins with gpu03.

    Raises ConfigError if the list is empty.
    """
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes.strip())
    if not match:
        raise ConfigError("SLURM_STEP_NODELIST is empty: set MASTER_ADDR to the host of rank 0.")
    return match[1] + (match[2] or "") + match[3]


def _mpi_address(
    environ: Mapping[str, str], *, all_here: bool, job: str, meeting: MpiMeeting | None
) -> tuple[str, int]:
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"], _port(environ, job=job)
    if all_here:
        return LOOPBACK, _port(environ, job=job)
    try:
        return (meeting or _ask_mpi)()
    except ImportError as error:
        raise ConfigError(
            "mpirun started ranks on several hosts, and nothing says where they meet: name the "
            "host of rank 0 (mpirun -x MASTER_ADDR=<host> ...), or install mpi4py."
        ) from error


def _ask_mpi() -> tuple[str, int]:
    """Rank 0's host name and a port of its choice, passed on by mpi4py."""
    import socket

    from mpi4py import MPI

    port = free_port("")
    address, chosen = MPI.COMM_WORLD.bcast((socket.gethostname(), port), root=0)
    return str(address), int(chosen)


def free_port(host: str) -> int:
    """A port on which nothing listens at the moment.

    Not one from the system's range for outgoing connections: a rank that connects too early could
    be given that very port and talk to itself.
    """
    import random
    import socket

    for port in random.sample(range(FIRST_PORT, FIRST_PORT + NUM_PORTS), 100):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ConfigError(
        f"no free port found between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS}: name one in {PORT}."
    )


def _port(environ: Mapping[str, str], what: str = "", *, job: str | None = None) -> int:
    """CUPYGPT_PORT, else MASTER_PORT, else a number that all ranks of `job` work out alike."""
    for name in (PORT, "MASTER_PORT"):
        if name in environ:
            port = _number(environ, name)
            if not 1 <= port < 65535:
                raise ConfigError(f"{name} is {port}: ports are numbers from 1 to 65534.")
            return port
    if job is None:
        raise ConfigError(f"{what} are set, but not MASTER_PORT: set it to any free port.")
    return FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS


def _rank_of_world(environ: Mapping[str, str], rank_name: str, world_name: str) -> tuple[int, int]:
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
