"""Before the first step on a GPU: compile all kernels that the run will launch, in parallel."""

from pathlib import Path

from cupygpt.console.console import Console
from cupygpt.device.device import Device
from cupygpt.kernels.compile_dry_run import compile_dry_run
from cupygpt.kernels.matmul import measuring
from cupygpt.model.generate import Generator
from cupygpt.training.trainer import Trainer


def compile_ahead(
    device: Device, trainer: Trainer, generator: Generator, console: Console, folder: Path
) -> None:
    """Compile, or load from the disk cache, with a line of progress. Raises KernelError.

    A dry run makes all calls of a step, an evaluation and a sample. Matrix products do run, on
    buffers that hold nothing yet, and choose their algorithms; rank 0 keeps the choices in
    `folder`.
    """
    if not device.is_gpu:
        return

    def dry_run() -> None:
        with measuring(folder, keep=trainer.rank == 0):
            trainer.dry_run()
            generator.dry_run()

    compile_dry_run(device, dry_run, console)
