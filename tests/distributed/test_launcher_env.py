import re

import pytest

from cupygpt.distributed.launcher_env import (
    FIRST_PORT,
    NUM_PORTS,
    RankInfo,
    find_rank_info,
    first_host,
    imitates_terminal,
)
from cupygpt.errors import ConfigError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "4711",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-host-4711@1",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_JOB_ID": "123", "SLURM_STEP_ID": "0",
}  # fmt: skip


def test_no_launcher_means_alone() -> None:
    assert find_rank_info({}) is None
    assert find_rank_info({"MASTER_ADDR": "gpu07", "SLURM_JOB_ID": "7"}) is None


def test_the_variables_of_torchrun() -> None:
    assert find_rank_info(TORCHRUN) == RankInfo(3, 8, 1, "gpu07", 4711, "RANK and WORLD_SIZE")


def test_torchrun_listens_on_its_port_itself() -> None:
    environ = {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place = find_rank_info(environ)
    assert place is not None
    assert place.port == 4712
    place = find_rank_info({**environ, "CUPYGPT_PORT": "4800"})
    assert place is not None
    assert place.port == 4800


@pytest.mark.parametrize("environ", [OPEN_MPI, MPICH, SLURM])
def test_ranks_of_one_job_work_out_the_same_port(environ: dict[str, str]) -> None:
    rank_name = next(
        name for name in environ if name.endswith(("WORLD_RANK", "PMI_RANK", "PROCID"))
    )
    ports = set()
    for rank in "01":
        place = find_rank_info({**environ, rank_name: rank})
        assert place is not None
        ports.add(place.port)
    (port,) = ports
    assert FIRST_PORT <= port < FIRST_PORT + NUM_PORTS


def test_mpirun_on_one_host() -> None:
    place = find_rank_info(OPEN_MPI)
    assert place is not None
    assert (place.rank, place.world, place.local_rank) == (2, 4, 2)
    assert place.address == "127.0.0.1"
    other = find_rank_info({**OPEN_MPI, "PMIX_NAMESPACE": "prterun-host-4712@1"})
    assert other is not None
    assert other.port != place.port  # a second mpirun beside the first


def test_mpirun_alone_imitates_a_terminal() -> None:
    assert imitates_terminal(OPEN_MPI)
    assert not imitates_terminal({"RANK": "0", "WORLD_SIZE": "2"})


def test_mpirun_on_several_hosts_needs_an_address() -> None:
    several = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}

    def no_mpi4py() -> tuple[str, int]:
        raise ImportError("mpi4py")

    with pytest.raises(ConfigError, match="-x MASTER_ADDR=<host>"):
        find_rank_info(several, no_mpi4py)
    place = find_rank_info(several, lambda: ("gpu01", 5000))
    assert place is not None
    assert (place.address, place.port) == ("gpu01", 5000)
    place = find_rank_info({**several, "MASTER_ADDR": "gpu02", "MASTER_PORT": "99"}, no_mpi4py)
    assert place is not None
    assert (place.address, place.port) == ("gpu02", 99)


def test_srun() -> None:
    place = find_rank_info(SLURM)
    assert place is not None
    assert (place.rank, place.world, place.local_rank, place.address) == (5, 8, 1, "gpu03")


def test_a_process_in_a_batch_script_is_alone() -> None:
    """There SLURM_NTASKS speaks of the job, not of this process."""
    batch = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert find_rank_info({**batch, "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu1,gpu2", "gpu1"),
        ("node-a", "node-a"),
        ("rack2-[7,9]-ib", "rack2-7-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_one_rank_is_alone() -> None:
    assert find_rank_info({"RANK": "0", "WORLD_SIZE": "1"} | {"MASTER_PORT": "1"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "8"}, "RANK is 8 and WORLD_SIZE is 8"),
        ({"RANK": "x"}, "RANK is 'x', but must be a number"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ({"MASTER_ADDR": None}, "not MASTER_ADDR"),
        ({"MASTER_PORT": None}, "not MASTER_PORT"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
    ],
)
def test_incomplete_variables_are_named(changes: dict[str, str | None], message: str) -> None:
    environ = {k: v for k, v in {**TORCHRUN, **changes}.items() if v is not None}
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_rank_info(environ)
