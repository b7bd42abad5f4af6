"""In which variables launchers tell a process who it is, and signs of launchers not known here.

Open MPI's mpirun, srun and Flux are described in their manuals. MPICH, Intel MPI and MVAPICH have
the variables of their process manager, Hydra; MVAPICH's mpirun_rsh, IBM's jsrun, HPE's PALS and
horovodrun have their own, known from the programs that run under them.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Launcher:
    """The names of a launcher's variables; empty for what it does not tell.

    `also` must be set beside `world` in a process that this launcher started. `ranks_here` holds
    the number of ranks on this host, `hosts` the number of hosts, `host_list` their names; the
    variables in `job` together identify the job. `terminal` is set if a task has a terminal, and
    `task` is the process id of the task.
    """

    name: str
    rank: str
    world: str
    local_rank: str
    also: str = ""
    ranks_here: str = ""
    hosts: str = ""
    host_list: str = ""
    job: tuple[str, ...] = ()
    terminal: str = ""
    task: str = ""


LAUNCHERS = (
    Launcher(
        "mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        world="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        ranks_here="OMPI_COMM_WORLD_LOCAL_SIZE",
        job=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    Launcher(
        "mpirun_rsh",
        rank="MV2_COMM_WORLD_RANK",
        world="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        ranks_here="MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    # srun sets PMI_RANK too, and may do so inside a job of Hydra: MPI_LOCALRANKID is Hydra's.
    Launcher(
        "mpirun",
        rank="PMI_RANK",
        world="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        also="MPI_LOCALRANKID",
        ranks_here="MPI_LOCALNRANKS",
        job=("I_MPI_HYDRA_UUID",),
    ),
    Launcher(
        "jsrun",
        rank="JSM_NAMESPACE_RANK",
        world="JSM_NAMESPACE_SIZE",
        local_rank="JSM_NAMESPACE_LOCAL_RANK",
        ranks_here="JSM_NAMESPACE_LOCAL_SIZE",
        job=("LSB_JOBID", "PMIX_NAMESPACE"),
    ),
    Launcher(
        "flux",
        rank="FLUX_TASK_RANK",
        world="FLUX_JOB_SIZE",
        local_rank="FLUX_TASK_LOCAL_ID",
        hosts="FLUX_JOB_NNODES",
        job=("FLUX_JOB_ID",),
    ),
    # Only srun sets the number of tasks of a step. SLURM_NTASKS is also set in a batch script and
    # in an interactive shell, which are single processes.
    Launcher(
        "srun",
        rank="SLURM_PROCID",
        world="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        hosts="SLURM_STEP_NUM_NODES",
        host_list="SLURM_STEP_NODELIST",
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
        terminal="SLURM_PTY_PORT",
        task="SLURM_TASK_PID",
    ),
    Launcher(
        "mpiexec of PALS",
        rank="PALS_RANKID",
        world="PMI_SIZE",
        local_rank="PALS_LOCAL_RANKID",
        also="PALS_RANKID",
        ranks_here="PALS_LOCAL_SIZE",
        job=("PALS_APID",),
    ),
    Launcher(
        "mpiexec",
        rank="PMI_RANK",
        world="PMI_SIZE",
        local_rank="PMI_LOCAL_RANK",
        ranks_here="PMI_LOCAL_SIZE",
    ),
    Launcher(
        "horovodrun",
        rank="HOROVOD_RANK",
        world="HOROVOD_SIZE",
        local_rank="HOROVOD_LOCAL_RANK",
        ranks_here="HOROVOD_LOCAL_SIZE",
    ),
)
"""A process belongs to the first of these whose variables are set. The launchers that are started
inside the job of another one come before it."""


def _is_several(value: str) -> bool:
    return value.strip() not in ("", "0", "1")


def _is_not_first(value: str) -> bool:
    return value.strip() not in ("", "0")


def _is_set(value: str) -> bool:
    return bool(value.strip())


SIGNS_OF_SEVERAL: dict[str, Callable[[str], bool]] = {
    "PMI_LOCAL_SIZE": _is_several,
    "MPI_LOCALNRANKS": _is_several,
    "PALS_LOCAL_SIZE": _is_several,
    "MPIRUN_NPROCS": _is_several,
    "LOCAL_WORLD_SIZE": _is_several,
    "PADDLE_TRAINERS_NUM": _is_several,
    # A rank whose world is not told may be one of several even if it is the first.
    "PMI_RANK": _is_set,
    "PMIX_RANK": _is_set,
    "PALS_RANKID": _is_set,
    "MV2_COMM_WORLD_RANK": _is_set,
    "OMPI_COMM_WORLD_RANK": _is_set,
    "JSM_NAMESPACE_RANK": _is_set,
    "FLUX_TASK_RANK": _is_set,
    "HOROVOD_RANK": _is_set,
    "ALPS_APP_PE": _is_set,
    "MPIRUN_RANK": _is_set,
    "LOCAL_RANK": _is_not_first,
}
"""Variables of launchers that are not in LAUNCHERS, or of whose variables the main ones are
missing; and whether a value says that there are, or may be, several processes."""
