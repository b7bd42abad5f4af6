"""Arrays in the emulated device's memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE = 0
_ALIGNMENT = 16  # of an array: what a 128-bit access needs
_GUARD = 1 << 20  # before and after an array; the pages are never touched, so they take no memory


class DeviceMemory(mmap.mmap):
    """One allocation, shared with the processes that run kernels, between two guards.

    The last byte lies next to the upper guard, up to the alignment: so an overrun is noticed
    even when the kernel runs without the checker. The guards are wide, so that an access outside
    is near to the array that was meant.
    """

    begin: int
    """Address of the first byte of the array."""
    num_bytes: int

    @classmethod
    def allocate(cls, num_bytes: int) -> DeviceMemory:
        """Map num_bytes of zeros."""
        page = mmap.PAGESIZE
        used = -(-max(num_bytes, 1) // _ALIGNMENT) * _ALIGNMENT
        body = -(-used // page) * page
        memory = cls(-1, body + 2 * _GUARD)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (base, base + _GUARD + body):
            if _libc.mprotect(guard, _GUARD, _PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect of a guard failed")
        memory.begin = base + _GUARD + body - used
        memory.num_bytes = num_bytes
        memory.offset = _GUARD + body - used
        return memory

    offset: int
    """Where the array begins inside the mapping, in bytes."""


class EmulatedArray(np.ndarray[Any, Any]):
    """An ndarray in emulated device memory: ops run their kernels on it, not their NumPy form.

    Views stay in device memory, and so do results of ufuncs, NumPy functions, `copy` and `astype`.
    """

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Compute with NumPy; a new result is put into device memory."""
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(_host(x) for x in out)
        result = getattr(ufunc, method)(*(_host(x) for x in inputs), **kwargs)
        if out is not None:
            return out[0] if len(out) == 1 else out
        return _device(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Call NumPy's function; a new result is put into device memory."""
        return _device(super().__array_function__(func, types, args, kwargs))

    def copy(self, order: Any = "C") -> EmulatedArray:
        """A copy in new device memory."""
        return emulated(_host(self).copy(order))

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> EmulatedArray:
        """As ndarray.astype; the result is in new device memory."""
        return emulated(_host(self).astype(dtype, *args, **kwargs))


def _host(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, EmulatedArray) else x


def _device(x: Any) -> Any:
    """Move arrays that a NumPy function made on the heap."""
    if isinstance(x, tuple):
        return tuple(_device(y) for y in x)
    if isinstance(x, np.ndarray) and memory_of(x) is None:
        return emulated(x)
    return x


_UNWRITTEN_BITS = {np.dtype(np.float32): 0x7FC0DEAD, np.dtype(np.uint16): 0x7FDE}


def unwritten(shape: int | Sequence[int], dtype: npt.DTypeLike = np.float32) -> np.ndarray:
    """An array for results that nobody has written yet.

    float32, and uint16 as bfloat16, hold a NaN with bits that no computation makes of numbers;
    other types hold zeros.
    """
    array = np.zeros(shape, dtype)
    if array.dtype in _UNWRITTEN_BITS:
        array.view(f"u{array.itemsize}").fill(_UNWRITTEN_BITS[array.dtype])
    return array


def never_written(values: npt.ArrayLike) -> np.ndarray:
    """Which elements still hold what `unwritten` put there; of values in float32 or float64."""
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    singles = [_UNWRITTEN_BITS[np.dtype(np.float32)], _UNWRITTEN_BITS[np.dtype(np.uint16)] << 16]
    return np.isin(
        bits, np.array(singles, np.uint32).view(np.float32).astype(float).view(np.uint64)
    )


def emulated_empty(shape: int | Sequence[int], dtype: npt.DTypeLike = np.float32) -> EmulatedArray:
    """A C-contiguous array in emulated device memory, filled by `unwritten`."""
    return emulated(unwritten(shape, dtype))


def _allocate(shape: int | Sequence[int], dtype: npt.DTypeLike) -> EmulatedArray:
    dimensions = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    kind = np.dtype(dtype)
    memory = DeviceMemory.allocate(int(np.prod(dimensions, dtype=np.int64)) * kind.itemsize)
    count = int(np.prod(dimensions, dtype=np.int64))
    flat = np.frombuffer(cast(Any, memory), dtype=kind, count=count, offset=memory.offset)
    return flat.reshape(dimensions).view(EmulatedArray)


def emulated(array: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> EmulatedArray:
    """Copy an array to emulated device memory, C-contiguous; dtype None keeps its dtype."""
    source = np.asarray(array, dtype)
    target = _allocate(source.shape, source.dtype)
    target.view(np.ndarray)[...] = source
    return target


def memory_of(array: np.ndarray[Any, Any]) -> DeviceMemory | None:
    """The allocation that an array is a view of; None if it is not in emulated device memory."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, DeviceMemory) else None
