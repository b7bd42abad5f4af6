"""The CUDA device: memory, copies, the run's stream, events and graphs, through CuPy.

Imported only when a GPU is used, because CuPy need not be installed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cuda_check import compute_capability, cuda_version
from cupygpt.device.peak_flops import peak_flops
from cupygpt.errors import DeviceError, KernelError

STAGING_BYTES = 32 << 20
"""Pinned memory that uploads pass through: many steps of tokens, or weights in a few chunks."""

ALIGNMENT_BYTES = 256
"""Where a region of the pinned memory may begin."""

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class CUDA:
    """One GPU, with one stream on which a run computes.

    Creating it makes GPU `index` and the stream CuPy's current ones for this thread; another
    thread that uses the device calls `activate` first. Only one thread at a time may use it.
    """

    is_gpu = True

    def __init__(self, index: int = 0) -> None:
        self.index = index
        with cupy.cuda.Device(index):
            self.compute_capability = compute_capability(cupy, index)
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self._staging = PinnedRing(_pinned(STAGING_BYTES), self.record)
            # What the context and other processes hold already is not this run's.
            self._held_before = self._held_bytes()
        self.activate()

    def peak_flops(self, precision: str) -> float | None:
        """Operations per second by NVIDIA's datasheets; None for a GPU that is not in the table."""
        return peak_flops(self.gpu_name(), precision)

    def activate(self) -> None:
        """Make this GPU and its stream CuPy's current ones in the calling thread."""
        cupy.cuda.Device(self.index).use()
        self.stream.use()

    def zeros(self, size: int, dtype: Any) -> Array:
        """Flat array of `size` zeros, straight from cudaMalloc.

        Without CuPy's pool in between, the memory in use is what was planned. Raises DeviceError
        with the figures where it does not suffice.
        """
        num_bytes = size * np.dtype(dtype).itemsize
        try:
            memory = cupy.cuda.Memory(num_bytes)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status != _OUT_OF_MEMORY:
                raise DeviceError(f"GPU {self.index}: {error}.") from None
            raise DeviceError(
                f"{num_bytes / 2**30:.2f} GiB of GPU memory could not be allocated, "
                f"{self.free_bytes() / 2**30:.2f} GiB are free. "
                f"Use a smaller -b or -t, or close what else uses GPU {self.index}."
            ) from None
        array = cupy.ndarray(size, dtype, cupy.cuda.MemoryPointer(memory, 0))
        array.data.memset_async(0, num_bytes, self.stream)
        return array

    def upload(self, target: Array, source: np.ndarray) -> None:
        """Copy a host array into a contiguous device array of the same shape, on the stream.

        Returns as soon as the values are in pinned memory, so `source` may change at once. Waits
        only where the copies of the last 32 MiB are not done yet.
        """
        assert target.shape == source.shape, (target.shape, source.shape)
        assert target.flags.c_contiguous
        if self.stream.is_capturing():
            raise KernelError("an upload cannot be part of a captured graph: upload before it.")
        flat = np.ascontiguousarray(source).reshape(-1)
        chunk = STAGING_BYTES // 4 // target.itemsize
        for start in range(0, flat.size, chunk):
            part = flat[start : start + chunk]
            num_bytes = part.size * target.itemsize
            with self._staging.take(num_bytes) as pinned:
                np.copyto(pinned.view(target.dtype), part, casting="same_kind")
                address = target.data + start * target.itemsize
                address.copy_from_host_async(pinned.ctypes.data, num_bytes, self.stream)

    def download(self, source: Array) -> np.ndarray:
        """The host copy of an array; waits for the work queued before it."""
        host: np.ndarray = cupy.asnumpy(source, stream=self.stream)
        return host

    def read_later(self, source: Array) -> "Readback":
        """Start copying a contiguous array to the host on the stream; nothing waits."""
        return Readback(source, self.stream, self.record)

    def free_bytes(self) -> int:
        """GPU memory that can still be allocated."""
        with cupy.cuda.Device(self.index):
            free, _ = cupy.cuda.runtime.memGetInfo()
        return int(free)

    def used_bytes(self) -> int:
        """GPU memory taken since this object was made: arrays, workspace and loaded kernels.

        From the driver's figures, so what other processes take meanwhile is counted too.
        """
        return max(0, self._held_bytes() - self._held_before)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done; errors of kernels surface here."""
        try:
            self.stream.synchronize()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise KernelError(f"GPU {self.index} failed while it computed: {error}.") from error

    def record(self) -> Any:
        """A CUDA event on the stream; it is done when the work queued so far is."""
        event = cupy.cuda.Event()
        event.record(self.stream)
        return event

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        """Milliseconds of GPU time between two recorded events; waits for the second."""
        stop.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, stop))

    def capture(self, function: Callable[[], None]) -> "Graph":
        """Record what `function` queues on the stream, without running it.

        Nothing in it may wait for the device, upload or download; kernels read changing numbers
        from device memory. Raises KernelError where the capture fails.
        """
        runtime = cupy.cuda.runtime
        # Relaxed: the first product of a kind may load its code meanwhile.
        self.stream.begin_capture(runtime.streamCaptureModeRelaxed)
        try:
            function()
        except BaseException:
            self._abandon_capture()
            raise
        try:
            return Graph(self.stream.end_capture(), self.stream)
        except runtime.CUDARuntimeError as error:
            raise KernelError(
                f"the step could not be captured as a CUDA graph ({error}); --no-graph avoids it."
            ) from error

    def describe(self) -> str:
        """One line for the console."""
        runtime = cupy.cuda.runtime
        major, minor = self.compute_capability
        properties = runtime.getDeviceProperties(self.index)
        return (
            f"{self.gpu_name()}, {properties['totalGlobalMem'] / 2**30:.1f} GiB, "
            f"compute capability {major}.{minor}, "
            f"driver for CUDA {cuda_version(runtime.driverGetVersion())}, "
            f"CuPy {cupy.__version__} for CUDA {cuda_version(runtime.runtimeGetVersion())}"
        )

    def gpu_name(self) -> str:
        """The product's name as the driver gives it, such as "NVIDIA H100 80GB HBM3"."""
        name = cupy.cuda.runtime.getDeviceProperties(self.index)["name"]
        return str(name.decode())

    def _held_bytes(self) -> int:
        with cupy.cuda.Device(self.index):
            free, total = cupy.cuda.runtime.memGetInfo()
        return int(total - free)

    def _abandon_capture(self) -> None:
        """Leave capture mode after an error, whose message is the one that matters."""
        try:
            self.stream.end_capture()
        except cupy.cuda.runtime.CUDARuntimeError:
            return


class PinnedRing:
    """Page-locked memory that host data passes through on its way to the GPU.

    Hands out regions of one buffer in turn; a region is reused when its copy has been done.

    `record` marks the current end of the stream that copies from the regions.
    """

    def __init__(self, buffer: np.ndarray, record: Callable[[], Any]) -> None:
        self._buffer, self._record = buffer, record
        self._busy: deque[tuple[int, int, Any]] = deque()
        self._next = 0

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[np.ndarray]:
        """Region of `num_bytes` to fill, and to copy from before the block ends.

        Waits while earlier copies still read from it. At most the size of the ring.
        """
        assert 0 < num_bytes <= self._buffer.size, num_bytes
        if self._next + num_bytes > self._buffer.size:
            self._next = 0
        start, stop = self._next, self._next + num_bytes
        # Regions are busy in the order in which they were taken: the oldest lie ahead.
        while self._busy and any(start < b and a < stop for a, b, _ in self._busy):
            self._busy.popleft()[2].synchronize()
        yield self._buffer[start:stop]
        self._busy.append((start, stop, self._record()))
        self._next = -(-stop // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Graph:
    """Captured work, to be launched as often as wanted on the stream it was captured on."""

    def __init__(self, graph: Any, stream: Any) -> None:
        self._graph, self._stream = graph, stream

    def launch(self) -> None:
        """Queue the whole graph; returns at once."""
        self._graph.launch(self._stream)


class Readback:
    """An array on its way to the host."""

    def __init__(self, source: Array, stream: Any, record: Callable[[], Any]) -> None:
        assert source.flags.c_contiguous
        pinned = _pinned(max(1, source.nbytes))[: source.nbytes]
        source.data.copy_to_host_async(pinned.ctypes.data, source.nbytes, stream)
        self._values: np.ndarray = pinned.view(source.dtype).reshape(source.shape)
        self.event = record()

    def ready(self) -> bool:
        """Whether `value` returns without waiting."""
        return bool(self.event.done)

    def value(self) -> np.ndarray:
        """The array as it was when the copy was queued; waits until it has arrived."""
        self.event.synchronize()
        return self._values


def _pinned(num_bytes: int) -> np.ndarray:
    """Page-locked host memory as bytes: the GPU copies from it without the CPU's help."""
    memory = cupy.cuda.alloc_pinned_memory(num_bytes)
    return np.frombuffer(memory, np.uint8, num_bytes)
