"""Before the first step on a GPU: compile all kernels that the run will launch, in parallel."""

from pathlib import Path

from cupygpt.console.console import Console
from cupygpt.device.device import Device
from cupygpt.kernels.load import precompile, record_kernels
from cupygpt.kernels.matmul_plan import measuring
from cupygpt.model.generate import Generator
from cupygpt.training.trainer import Trainer


def compile_ahead(
    device: Device, trainer: Trainer, generator: Generator, console: Console, folder: Path
) -> None:
    """Compile, or load from the disk cache, with a line of progress. Raises KernelError.

    A dry run makes all calls of a step, an evaluation and a sample, and records the kernels instead
    of launching them. Matrix products do run, on buffers that hold nothing yet, and choose their
    algorithms; rank 0 keeps the choices in `folder`.
    """
    if not device.is_gpu:
        return

    def dry_run() -> None:
        trainer.dry_run()
        generator.dry_run()

    with measuring(folder, keep=trainer.rank == 0):
        variants = record_kernels(dry_run)
    with console.progress(f"compiling {len(variants)} kernel files") as show:
        precompile(variants, progress=show, set_up_thread=device.activate)
    device.synchronize()
