"""How long kernels take on the GPU of this machine, with cold caches."""

from collections.abc import Callable
from statistics import median
from typing import Any

from cupygpt.emulator.compiler import Mode
from cupygpt.errors import LabError
from cupygpt.kernels.load import load_cupy_module
from cupygpt.lab.contracts.case import arguments_of, filled_arrays
from cupygpt.lab.contracts.contract import Contract, Sizes
from cupygpt.lab.kernel_file import KernelFile

REPEATS = 15
"""Calls of which the median counts."""
FLUSH_BYTES = 256 << 20
"""Written between two measurements: more than any L2 cache holds."""


def measured_us(contract: Contract, sizes: Sizes, dtype: str, file: KernelFile | None) -> float:
    """The median time of one call in microseconds: of the file's kernels, or of the trainer's own.

    Each call is measured by events around it, less what an empty pair of events takes. Raises
    LabError where there is no GPU.
    """
    cupy = _cupy()
    arrays = filled_arrays(contract, sizes, dtype, cupy.asarray)

    def empty(size: int) -> Any:
        return cupy.zeros(size, cupy.float32)

    if file is None:
        own = contract.own
        assert own is not None, contract.name
        return _time(cupy, lambda: own(arrays, sizes, empty))
    arguments = arguments_of(contract, sizes, dtype, arrays)
    module = load_cupy_module(file.path, file.options(arguments))
    calls = []
    for call in file.calls(arguments, Mode.CHECKED, empty):
        function = module.get_function(call.kernel.name)
        if call.shared_bytes:
            function.max_dynamic_shared_size_bytes = call.shared_bytes
        calls.append((function, call.grid, call.block, tuple(call.values), call.shared_bytes))

    def run() -> None:
        for function, grid, block, values, shared_bytes in calls:
            function(grid, block, values, shared_mem=shared_bytes)

    return _time(cupy, run)


def name_of_gpu() -> str:
    """The GPU that `measured_us` measures on. Raises LabError where there is none."""
    cupy = _cupy()
    return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())


def _time(cupy: Any, run: Callable[[], None]) -> float:
    flush = cupy.empty(FLUSH_BYTES, cupy.uint8)
    run()

    def one(call: Callable[[], None]) -> float:
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        flush.fill(1)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return 1e3 * float(cupy.cuda.get_elapsed_time(start, stop))

    nothing = median(one(lambda: None) for _ in range(REPEATS))
    return median(one(run) for _ in range(REPEATS)) - nothing


def _cupy() -> Any:
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount() > 0:
            return cupy
    except Exception as error:  # noqa: BLE001 - CuPy and the driver raise many kinds
        raise LabError(f"--measure needs a GPU and CuPy: {error}.") from None
    raise LabError("--measure needs a GPU; this machine has none.")
