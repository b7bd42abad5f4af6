"""GPUs by name: the figures that an estimate needs, from NVIDIA's data sheets."""

from dataclasses import dataclass

from cupygpt.errors import ConfigError


@dataclass(frozen=True)
class GPU:
    """One model of GPU."""

    name: str
    architecture: str
    """For NVIDIA's compiler: sm_90."""
    dram_gb_s: float
    fp32_tflops: float
    tensor_tflops: float
    """Of bfloat16 without sparsity; of float16 where there is no bfloat16."""
    multiprocessors: int
    clock_ghz: float
    threads: int
    """That a multiprocessor holds, as the next ones."""
    shared_kib: int
    blocks: int
    registers: int
    l2_mb: float

    @property
    def article(self) -> str:
        """`an` H100, `a` T4."""
        return "an" if self.name[0] in "AHR" else "a"


def _table(*gpus: GPU) -> dict[str, GPU]:
    return {gpu.name: gpu for gpu in gpus}


GPUS = _table(
    # name, architecture, GB/s, fp32, tensor, SMs, GHz, threads, shared, blocks, registers, L2
    GPU("T4", "sm_75", 320, 8.1, 65, 40, 1.59, 1024, 64, 16, 65536, 4),
    GPU("RTX 3060", "sm_86", 360, 12.7, 51, 28, 1.78, 1536, 100, 16, 65536, 3),
    GPU("RTX 4090", "sm_89", 1008, 82.6, 165, 128, 2.52, 1536, 100, 24, 65536, 72),
    GPU("A100", "sm_80", 2039, 19.5, 312, 108, 1.41, 2048, 164, 32, 65536, 40),
    GPU("H100", "sm_90", 3350, 66.9, 989, 132, 1.98, 2048, 228, 32, 65536, 50),
    GPU("H200", "sm_90", 4800, 66.9, 989, 132, 1.98, 2048, 228, 32, 65536, 50),
)
"""The A100 has 80 GB, H100 and H200 are those for SXM."""

DEFAULT_GPU = GPUS["H100"]
"""The only one on which estimates were compared with measured times."""


def gpu_by_name(name: str) -> GPU:
    """The GPU of that name, however it is spaced and capitalised.

    Raises ConfigError that lists the names.
    """
    wanted = _plain(name)
    for gpu in GPUS.values():
        if wanted == _plain(gpu.name):
            return gpu
    raise ConfigError(f"there are no figures of a GPU {name!r}, only of {', '.join(GPUS)}.")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
