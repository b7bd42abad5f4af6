"""Which variants of the .cu files real runs launch, as the launch code itself says.

The runs are dry runs of a trainer and of a generator on stand-in GPUs: every op makes its choices,
no kernel is launched and no memory is touched.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from cupygpt.config import GPT2_VOCAB, GPTConfig
from cupygpt.device.precision import PRECISIONS, Precision, supports_precision
from cupygpt.kernels.load import Variant, find_cuda_dir, record_kernels
from cupygpt.model.generate import Generator
from cupygpt.model.memory_plan import shape_of_run
from cupygpt.training.trainer import OptimizerSettings, Trainer
from support.stand_in_gpu import StandInGPU

CUDA_DIR = find_cuda_dir()
TRAINER_FILES = sorted(
    name
    for path in CUDA_DIR.rglob("*.cu")
    if not (name := path.relative_to(CUDA_DIR).as_posix()).startswith("lab/")
)
"""The .cu files whose kernels runs launch: all but those of the lab."""


@dataclass(frozen=True)
class Run:
    """A model and a batch; it is run in every precision that the GPU has."""

    C: int
    NH: int
    B: int
    T: int
    V: int = GPT2_VOCAB


# Head size 32; 64 in a batch that keeps a large GPU busy, so that warps own more rows; 128 with
# channels that take several warps per row. Of the head sizes, 128 needs the most registers.
USUAL_RUNS = (Run(128, 4, 32, 256), Run(768, 12, 16, 1024), Run(4096, 32, 2, 1024))

# All head sizes, in a large batch and in a small one; and all models of the descriptors d6 to d84
# and gpt3:c384 to gpt3:c12288 with a few more widths, whose channels LayerNorm spreads over threads
# in different ways.
_HEAD_SIZES = range(8, 129, 8)
_WIDTHS = (8, 64, 128, 256, 384, 512, 1024, 1280, 1536, 1600, 1920, 2048, 2560, 2880, 3456, 4096)
_WIDTHS += (6144, 8192, 12288)
ALL_RUNS = (
    *USUAL_RUNS,
    *(Run(8 * HS, 8, B, 1024) for HS in _HEAD_SIZES for B in (1, 32)),
    *(Run(C, max(1, C // 64), 1, 64) for C in _WIDTHS),
    Run(128, 4, 4, 64, V=257),
)


MANY_ROWS = 64
"""Texts that are written at once: more than the kernels for few rows take."""

LONG = 4096
"""Positions of a model whose keys several blocks share when it writes one text."""

NEVER_LAUNCHED = {
    "gelu_backward": "a run fuses GELU's gradient with the sum of its rows, or with a matmul",
}
"""Kernels that no run launches, and why they are there."""


@cache
def launched_variants(capability: str, runs: tuple[Run, ...]) -> dict[Variant, set[str]]:
    """What these runs launch on a GPU: each variant, with the kernels launched from it."""
    found: dict[Variant, set[str]] = {}
    device = StandInGPU(capability)
    precisions = [p for p in PRECISIONS.values() if supports_precision(device, p)]
    for precision in precisions:
        for run in runs:
            recorded = record_kernels(lambda run=run: _dry_run(device, run, precision))  # type: ignore[misc] # noqa: B023
            for variant, kernels in recorded.items():
                found.setdefault(variant, set()).update(kernels)
    return found


def variants_of(
    file: str, capabilities: Iterable[str], runs: tuple[Run, ...]
) -> Iterator[tuple[str, Variant, set[str]]]:
    """(capability, variant, kernels launched from it) of a .cu file."""
    for capability in capabilities:
        for variant, kernels in launched_variants(capability, runs).items():
            if variant.file == file:
                yield capability, variant, kernels


def _dry_run(device: StandInGPU, run: Run, precision: Precision) -> None:
    config = GPTConfig(maxT=run.T, V=run.V, L=1, NH=run.NH, C=run.C)
    shape = shape_of_run(config, run.B, run.T, precision, on_gpu=True, recompute=2)
    trainer = Trainer(device, shape, OptimizerSettings(), dropout_p=0.1)
    trainer.dry_run()
    for rows, maxT in ((1, config.maxT), (MANY_ROWS, config.maxT), (1, LONG)):
        model = replace(config, maxT=maxT)
        Generator(device, model, trainer.params, precision, rows=rows).dry_run()
