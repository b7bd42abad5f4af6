"""The flags about devices, memory, precision and ranks."""

from dataclasses import dataclass

from cupygpt.device.precision import PRECISIONS
from cupygpt.flags.field import AT_LEAST_1, POSITIVE, flag, switch


@dataclass(frozen=True)
class MachineFlags:
    """The machine."""

    device: str = flag("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    gpus: int | None = flag(
        "--gpus",
        type=int,
        range=AT_LEAST_1,
        help="train on so many GPUs of this machine; mpirun, srun and torchrun do the same, on one "
        "machine or several; with --device cpu, so many processes (for tests)",
    )
    precision: str = flag(
        "--precision",
        default="auto",
        choices=("auto", *PRECISIONS),
        fixed=True,
        help="number format of the matrix products",
    )
    master_weights: int = flag(
        "-w",
        "--master-weights",
        default=1,
        type=int,
        choices=(0, 1),
        fixed=True,
        help="0 trains bf16 weights without a float32 copy",
    )
    recompute: int = flag(
        "-r",
        "--recompute",
        default=0,
        type=int,
        choices=(0, 1, 2),
        help="save memory: 1 recomputes GELU in backward, 2 also the LayerNorms",
    )
    zero_stage: int = flag(
        "-z",
        "--zero-stage",
        default=0,
        type=int,
        choices=(0, 1),
        help="1 shares the optimizer's state out among the GPUs (ZeRO-1)",
    )
    no_graph: bool = switch("--no-graph", help="launch each kernel by itself (to debug)")
    rank_timeout: float = flag(
        "--rank-timeout",
        default=120.0,
        type=float,
        range=POSITIVE,
        help="seconds to wait at startup for all ranks to connect",
    )
