"""Sums and gathers over GPUs by NCCL, on a second stream in parallel with the one that computes.

Imported only when several GPUs are used, because CuPy may not be installed.
"""

import base64
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import cupy
from cupy.cuda import nccl

from cupygpt.arrays import Array
from cupygpt.device.cuda import CUDA
from cupygpt.distributed.ranks import Ranks, broadcast_object
from cupygpt.errors import DeviceError


class NcclCollectives:
    """NCCL between the GPUs of all ranks.

    All NCCL calls are queued on one side stream. Before its work, the side stream waits for an
    event of the main stream; in `wait`, the main stream waits for an event of the side stream. In a
    captured graph these events become dependencies between two branches, so a captured step
    overlaps as an eager step does.
    """

    def __init__(self, device: CUDA, ranks: Ranks) -> None:
        self.rank, self.world = ranks.rank, ranks.world
        self._main = device.stream
        self._side = cupy.cuda.Stream(non_blocking=True)
        own_id = base64.b64encode(nccl.get_unique_id()).decode() if self.rank == 0 else None
        unique_id = base64.b64decode(broadcast_object(ranks, own_id))
        self._communicator = self._try(
            lambda: nccl.NcclCommunicator(self.world, unique_id, self.rank)
        )
        # Leak one reference so that Python never destroys the communicator: its destructor would
        # wait for every graph that uses it, and for the other ranks, which may be dead.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._communicator))

    def all_reduce_async(self, arrays: Sequence[Array]) -> None:
        """Queue one sum per array in a single NCCL group; see Collectives."""
        for array in arrays:
            assert array.dtype == cupy.float32, array.dtype
            assert array.flags.c_contiguous
        self._fork()
        self._try(lambda: self._sum(arrays))

    def wait(self) -> None:
        """The main stream waits for the side stream."""
        done = cupy.cuda.Event(disable_timing=True)
        done.record(self._side)
        self._main.wait_event(done)

    def all_gather(self, whole: Array, start: int, stop: int) -> None:
        """Queue an all-gather in place, and let the main stream wait for it; see Collectives."""
        own = whole[start:stop]
        assert own.size * self.world == whole.size, (own.size, self.world, whole.size)
        assert start == self.rank * own.size, (start, self.rank)
        self._fork()
        self._try(
            lambda: self._communicator.allGather(
                own.data.ptr, whole.data.ptr, own.nbytes, nccl.NCCL_UINT8, self._side.ptr
            )
        )
        self.wait()

    def _sum(self, arrays: Sequence[Array]) -> None:
        nccl.groupStart()
        for array in arrays:
            pointer = array.data.ptr
            self._communicator.allReduce(
                pointer, pointer, array.size, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, self._side.ptr
            )
        nccl.groupEnd()

    def _fork(self) -> None:
        """The side stream waits for all that is queued on the main stream so far."""
        reached = cupy.cuda.Event(disable_timing=True)
        reached.record(self._main)
        self._side.wait_event(reached)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except nccl.NcclError as error:
            raise DeviceError(
                f"NCCL failed on rank {self.rank} ({error}). Run again with NCCL_DEBUG=WARN in the "
                f"environment to see why."
            ) from error


def versions() -> dict[str, str]:
    """Library versions that must be equal on all ranks. Raises DeviceError if there is no NCCL."""
    if not nccl.available:
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        raise DeviceError(
            f"several GPUs need NCCL, which CuPy does not find: pip install 'cupygpt[nccl{major}]'."
        )
    number = nccl.get_version()
    return {
        "CuPy": cupy.__version__,
        "NCCL": f"{number // 10000}.{number // 100 % 100}.{number % 100}",
        "CUDA runtime": str(cupy.cuda.runtime.runtimeGetVersion()),
    }


def pci_address(index: int) -> str:
    """The PCI address of a GPU, which differs between the GPUs of a host."""
    return str(cupy.cuda.runtime.deviceGetPCIBusId(index))
