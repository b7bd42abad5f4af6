"""Before the first step on a GPU: compile all kernels that the run will launch, in parallel."""

from cupygpt.console import Console
from cupygpt.device import Device
from cupygpt.generate import Generator
from cupygpt.kernels import collect, precompile
from cupygpt.step import Trainer


def warm_up(device: Device, trainer: Trainer, generator: Generator, console: Console) -> None:
    """Compile, or load from the disk cache, with a line of progress. Raises KernelError.

    A rehearsal finds out which kernels are needed: it makes all calls of a step, an evaluation
    and a sample, and only notes the launches. Matrix products do run, on buffers that hold
    nothing yet, and choose their algorithms.
    """
    if device.name != "cuda":
        return
    from cupygpt.cuda_device import CUDA

    assert isinstance(device, CUDA)

    def rehearse() -> None:
        trainer.rehearse()
        generator.rehearse()

    jobs = collect(rehearse)
    with console.progress(f"compiling {len(jobs)} kernel files") as show:
        precompile(jobs, progress=show, set_up_thread=device.activate)
    device.synchronize()
