"""Compile what a piece of work will launch, before it begins: all files in parallel."""

from collections.abc import Callable

from cupygpt.console.console import Console
from cupygpt.device.device import Device
from cupygpt.kernels.load import precompile, record_kernels


def compile_dry_run(device: Device, dry_run: Callable[[], None], console: Console) -> None:
    """Compile, or load from the disk cache, the kernels of a GPU that `dry_run` would launch.

    They are recorded instead of launched; matrix products do run. `console` shows the progress.
    Raises KernelError.
    """
    variants = record_kernels(dry_run)
    with console.progress(f"compiling {len(variants)} kernel files") as show:
        precompile(variants, progress=show, set_up_thread=device.activate)
    device.synchronize()
