"""Which rank a process is, by the variables of each launcher."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import cupygpt
from cupygpt.distributed.launcher_env import (
    FIRST_PORT,
    NUM_PORTS,
    AskMpi,
    RankInfo,
    find_rank_info,
    first_host,
    imitates_terminal,
)
from cupygpt.errors import ConfigError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1",
    "MASTER_ADDR": "gpu07", "MASTER_PORT": "4711",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-host-4711@1",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
INTEL_MPI = {**MPICH, "I_MPI_HYDRA_UUID": "497a0000-444f"}
SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_JOB_ID": "123", "SLURM_STEP_ID": "0",
}  # fmt: skip
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "2", "MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_LOCAL_RANK": "2",
    "MV2_COMM_WORLD_LOCAL_SIZE": "4",
}  # fmt: skip
PALS = {
    "PMI_RANK": "2", "PMI_SIZE": "4", "PALS_RANKID": "2", "PALS_LOCAL_RANKID": "2",
    "PALS_LOCAL_SIZE": "4", "PALS_APID": "1b2c",
}  # fmt: skip
JSRUN = {
    "JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_LOCAL_RANK": "2",
    "JSM_NAMESPACE_LOCAL_SIZE": "4", "LSB_JOBID": "77",
}  # fmt: skip
FLUX = {
    "FLUX_TASK_RANK": "2", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "2",
    "FLUX_JOB_NNODES": "1", "FLUX_JOB_ID": "ƒ2abc",
}  # fmt: skip
PMI = {"PMI_RANK": "2", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "2", "PMI_LOCAL_SIZE": "4"}
HOROVOD = {
    "HOROVOD_RANK": "2", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "2", "HOROVOD_LOCAL_SIZE": "4",
}  # fmt: skip
OTHERS = [MVAPICH, PALS, JSRUN, FLUX, PMI, HOROVOD]
RANK_NAMES = {
    "RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK", "FLUX_TASK_RANK", "HOROVOD_RANK",
}  # fmt: skip


def found(environ: Mapping[str, str], ask_mpi: AskMpi | None = None) -> RankInfo:
    """The rank that an environment describes, which must be one of several."""
    info = find_rank_info(environ, ask_mpi)
    assert info is not None
    return info


def infos_of_two_ranks(environ: dict[str, str]) -> list[RankInfo]:
    """What ranks 0 and 1 of the same job find."""
    (name,) = RANK_NAMES & set(environ)
    return [found({**environ, name: rank}) for rank in "01"]


def test_a_process_without_a_launcher_is_alone() -> None:
    assert find_rank_info({}) is None
    assert find_rank_info({"MASTER_ADDR": "gpu07", "SLURM_JOB_ID": "7"}) is None


def test_the_variables_of_torchrun_are_read() -> None:
    launcher = "another launcher (RANK and WORLD_SIZE are set)"
    assert replace(found(TORCHRUN), key="") == RankInfo(3, 8, 1, "gpu07", 4711, launcher, "")


def test_rank_0_uses_the_next_port_because_torchrun_listens_on_its_own() -> None:
    environ = {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert found(environ).port == 4712
    assert found({**environ, "CUPYGPT_PORT": "4800"}).port == 4800


@pytest.mark.parametrize("environ", [OPEN_MPI, MPICH, SLURM, *OTHERS])
def test_all_ranks_of_a_job_find_the_same_port(environ: dict[str, str]) -> None:
    first, second = infos_of_two_ranks(environ)
    assert first.port == second.port
    assert FIRST_PORT <= first.port < FIRST_PORT + NUM_PORTS


@pytest.mark.parametrize("environ", [TORCHRUN, OPEN_MPI, MPICH, SLURM, *OTHERS])
def test_all_ranks_of_a_job_find_the_same_key(environ: dict[str, str]) -> None:
    first, second = infos_of_two_ranks(environ)
    assert first.key == second.key
    assert first.key


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        (TORCHRUN, {"TORCHELASTIC_RUN_ID": "another"}),
        (OPEN_MPI, {"PMIX_NAMESPACE": "prterun-host-4712@1"}),
        (MPICH, {"CUPYGPT_PORT": "5001"}),
        (INTEL_MPI, {"I_MPI_HYDRA_UUID": "a17a0000-28e4"}),
        (SLURM, {"SLURM_JOB_ID": "124"}),
        (SLURM, {"SLURM_STEP_ID": "1"}),
    ],
)
def test_two_jobs_have_two_keys(environ: dict[str, str], job: dict[str, str]) -> None:
    environ = {"MASTER_ADDR": "gpu07", "CUPYGPT_PORT": "5000", **environ}
    assert found({**environ, **job}).key != found(environ).key


def test_the_key_can_be_set_and_is_not_shown() -> None:
    info = found({**TORCHRUN, "CUPYGPT_KEY": "a secret"})
    assert info.key == "a secret"
    assert "secret" not in repr(info)
    with pytest.raises(ConfigError, match="CUPYGPT_KEY is empty"):
        find_rank_info({**TORCHRUN, "CUPYGPT_KEY": ""})


START_RANKS = """
import json, subprocess, sys
report = [sys.executable, "-c", sys.argv[1]]
through_a_script = ["sh", "-c", '"$@"; exit $?', "sh", *report]
for rank, command in enumerate([report, through_a_script]):
    environ = {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
    environ |= {"PMI_RANK": str(rank), "MPI_LOCALRANKID": str(rank), "PYTHONPATH": sys.argv[2]}
    subprocess.run(command, env=environ, start_new_session=True, check=True)
"""
REPORT = """
import os
from cupygpt.distributed.launcher_env import find_rank_info
info = find_rank_info(os.environ)
print(info.port, info.key, sep=", ")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mpich_runs_of_one_host_differ_in_port_and_key() -> None:
    """Each mpirun is a process that starts two ranks, the second one through a script."""
    root = str(Path(cupygpt.__file__).parents[1])
    runs = [
        subprocess.run(
            [sys.executable, "-c", START_RANKS, REPORT, root],
            stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.splitlines()
        for _ in range(2)
    ]  # fmt: skip
    (first, first_again), (second, second_again) = runs
    assert first == first_again
    assert second == second_again
    assert first.split(", ", 1)[0] != second.split(", ", 1)[0]
    assert first.split(", ", 1)[1] != second.split(", ", 1)[1]


def test_mpich_ranks_on_several_hosts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {**MPICH, "PMI_SIZE": "4", "MASTER_ADDR": "gpu07"}
    first = found(environ)
    monkeypatch.setattr("os.getsid", lambda _: 1)  # another host has other processes
    assert found({**environ, "PMI_RANK": "2"}).key == first.key


def test_mpirun_on_one_host_needs_no_address() -> None:
    info = found(OPEN_MPI)
    assert (info.rank, info.world, info.local_rank) == (2, 4, 2)
    assert info.address == "127.0.0.1"
    second_run = found({**OPEN_MPI, "PMIX_NAMESPACE": "prterun-host-4712@1"})
    assert second_run.port != info.port


def test_only_mpirun_imitates_a_terminal() -> None:
    assert imitates_terminal(OPEN_MPI)
    assert not imitates_terminal({"RANK": "0", "WORLD_SIZE": "2"})


def test_mpirun_on_several_hosts_needs_an_address_or_mpi4py() -> None:
    several = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}

    def no_mpi4py() -> tuple[str, int]:
        raise ImportError("mpi4py")

    with pytest.raises(ConfigError, match="-x MASTER_ADDR=<host>"):
        find_rank_info(several, no_mpi4py)
    info = found(several, lambda: ("gpu01", 5000))
    assert (info.address, info.port) == ("gpu01", 5000)
    info = found({**several, "MASTER_ADDR": "gpu02", "MASTER_PORT": "99"}, no_mpi4py)
    assert (info.address, info.port) == ("gpu02", 99)


def test_the_variables_of_srun_are_read() -> None:
    info = found(SLURM)
    assert (info.rank, info.world, info.local_rank, info.address) == (5, 8, 1, "gpu03")


def test_a_process_in_a_batch_script_is_alone() -> None:
    """SLURM_NTASKS is set there for the whole job, not for this process."""
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
def test_the_first_host_of_a_node_list_is_found(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize("environ", OTHERS)
def test_the_variables_of_less_common_launchers_are_read(environ: dict[str, str]) -> None:
    info = found(environ)
    assert (info.rank, info.world, info.local_rank) == (2, 4, 2)
    assert (info.address, info.one_host) == ("127.0.0.1", True)


def test_a_launcher_inside_the_job_of_another_one_comes_first() -> None:
    assert found({**SLURM, **FLUX}).launcher == "flux"
    assert found({**SLURM, **MPICH}).launcher == "mpirun"
    assert found({**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8"}).launcher == "srun"
    assert found({**SLURM, **OPEN_MPI, **TORCHRUN}).address == "gpu07"


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1", "CUPYGPT_KEY": ""},
        {"RANK": "0", "WORLD_SIZE": "1", **OPEN_MPI},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"},
        {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1"},
        {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MPI_LOCALNRANKS": "1"},
    ],
)
def test_the_only_process_of_a_launcher_needs_nothing(environ: dict[str, str]) -> None:
    assert find_rank_info(environ) is None


PTY = {**SLURM, "SLURM_PROCID": "0", "SLURM_PTY_PORT": "34889"}


def test_a_command_in_the_shell_of_srun_is_alone() -> None:
    """The shell is a task of srun; an interactive shell gives each command a process group."""
    assert find_rank_info(PTY) is None
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as shell:
        assert find_rank_info({**PTY, "SLURM_TASK_PID": str(shell.pid)}) is None
        shell.kill()


def test_a_task_of_srun_with_a_terminal_is_a_rank() -> None:
    assert found({**PTY, "SLURM_TASK_PID": str(os.getpid())}).world == 8


@pytest.mark.parametrize(
    "environ",
    [
        {"PMI_RANK": "0", "PMI_SIZE": "4"},
        {"PMIX_RANK": "0"},
        {"PALS_RANKID": "3", "PALS_LOCAL_RANKID": "3"},
        {"ALPS_APP_PE": "1"},
        {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"},
        {"MPIRUN_RANK": "0", "MPIRUN_NPROCS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
        {"LOCAL_RANK": "1"},
    ],
)
def test_a_launcher_that_is_not_known_is_noticed(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"not known here .* Set RANK, WORLD_SIZE, LOCAL_RANK"):
        find_rank_info(environ)


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
def test_missing_and_wrong_variables_are_named(
    changes: dict[str, str | None], message: str
) -> None:
    environ = {k: v for k, v in {**TORCHRUN, **changes}.items() if v is not None}
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_rank_info(environ)
