"""One kernel of a compiled module. It checks a launch, as no GPU does, and runs it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cupygpt.emulator.arrays import DeviceMemory, EmulatedArray, memory_of
from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.counted import Counts
from cupygpt.emulator.faults import RawReport, fault_from
from cupygpt.emulator.preprocessed import DYNAMIC_SHARED
from cupygpt.emulator.raw_counters import (
    CountingRequest,
    RawCounters,
    counting_request,
    counts_from,
)
from cupygpt.emulator.toolchain import MAX_SHARED_BYTES, CompiledModule
from cupygpt.kernels.launch import DEFAULT_SHARED_BYTES

_Sizes = tuple[int, int, int]
_MAX_BLOCK = (1024, 1024, 64)
_MAX_GRID = (2**31 - 1, 65535, 65535)
# NumPy's name of each code in include/kernel_entry.h. bfloat16 is stored as uint16.
_DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "b16": "uint16",
    "h16": "float16",
    "bln": "bool",
    "i08": "int8",
    "u08": "uint8",
    "i16": "int16",
    "u16": "uint16",
    "i32": "int32",
    "u32": "uint32",
    "i64": "int64",
    "u64": "uint64",
}


class _SharedArray(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("name", ctypes.c_char * 48),
    ]


class _GlobalArray(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("allocation_begin", ctypes.c_uint64),
        ("allocation_bytes", ctypes.c_uint64),
        ("granule", ctypes.c_uint32),
        ("item_bytes", ctypes.c_uint32),
        ("name", ctypes.c_char * 48),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("body", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_void_p),
        ("shared_bytes", ctypes.c_uint64),
        ("shared_arrays", ctypes.POINTER(_SharedArray)),
        ("num_shared_arrays", ctypes.c_uint64),
        ("global_arrays", ctypes.POINTER(_GlobalArray)),
        ("num_global_arrays", ctypes.c_uint64),
        ("checked", ctypes.c_int32),
        ("timeout_s", ctypes.c_int32),
        ("counting", ctypes.POINTER(CountingRequest)),
    ]


class EmulatedKernel:
    """A kernel in the call form of CuPy's RawKernel."""

    def __init__(
        self,
        module: CompiledModule,
        library: ctypes.CDLL,
        name: str,
        *,
        mode: Mode,
        timeout_s: int,
    ) -> None:
        self.name = name
        self.max_threads: int = library[f"emu_bounds_{name}"]()
        describe = library[f"emu_signature_{name}"]
        describe.restype = ctypes.c_char_p
        text = describe().decode()
        self.parameters = [text[i : i + 4] for i in range(0, len(text), 4)]
        """The code of each parameter: three letters for the type, and * for a pointer; or the bytes
        of a struct."""
        self.max_dynamic_shared_size_bytes = DEFAULT_SHARED_BYTES
        """As in CuPy: set it before a launch with more dynamic shared memory."""
        self.shared_size_bytes = 0
        """As in CuPy; the emulator counts static shared memory apart from the dynamic."""
        self.parameter_names = module.parameters[name]
        """As the kernel's author calls them."""
        self._module, self._library = module, library
        self._mode, self._timeout_s = mode, timeout_s
        self._runtime = ctypes.CDLL(str(module.runtime))
        self._body = ctypes.cast(library[f"emu_call_{name}"], ctypes.c_void_p)

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0
    ) -> None:
        """Run the kernel until it ends.

        Args:
            grid: number of blocks, one to three dimensions.
            block: threads per block, one to three dimensions.
            args: a C-contiguous EmulatedArray or None for a pointer, a NumPy scalar of exactly
                the parameter's type for a scalar.
            shared_mem: bytes of dynamic shared memory.

        Raises:
            TypeError: a wrong number of arguments, or one of the wrong type.
            ValueError: a grid, block or shared memory size that no GPU accepts.
            KernelFault: the kernel went wrong.
        """
        self._launch(grid, block, args, shared_mem, None)

    def count(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0
    ) -> Counts:
        """Run the kernel, and return what it asked of a GPU.

        The module must have been compiled with Mode.COUNTED. Arguments and errors are those of a
        call.
        """
        if self._mode is not Mode.COUNTED:
            raise ValueError(f"{self.name} was not compiled with Mode.COUNTED")
        raw = RawCounters.from_buffer(mmap.mmap(-1, ctypes.sizeof(RawCounters)))
        request = counting_request(raw, self._module.library)
        grid3, block3, arrays = self._launch(grid, block, args, shared_mem, request)
        return counts_from(raw, self._module, self.name, grid3, block3, arrays, shared_mem)

    def _launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int,
        counting: CountingRequest | None,
    ) -> tuple[_Sizes, _Sizes, list[str]]:
        """Returns grid and block in three dimensions, and the names of the arrays."""
        grid3 = _dimensions("grid", grid, _MAX_GRID)
        block3 = _dimensions("block", block, _MAX_BLOCK)
        threads = block3[0] * block3[1] * block3[2]
        if threads > self.max_threads:
            raise ValueError(
                f"{self.name}: {threads} threads per block, the kernel allows {self.max_threads}"
            )
        shared = self._shared_arrays(shared_mem)
        values, arrays = self._arguments(args)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        global_arrays = (_GlobalArray * len(arrays))(*arrays)
        anchor = self._library.emu_shared_anchor
        anchor.restype = ctypes.c_void_p
        request = _Request(
            self._body,
            pointers,
            (ctypes.c_uint32 * 3)(*grid3),
            (ctypes.c_uint32 * 3)(*block3),
            anchor() - self._module.anchor_offset,
            max((a.offset + a.bytes for a in shared), default=0),
            shared,
            len(shared),
            global_arrays,
            len(arrays),
            int(self._mode is not Mode.UNCHECKED),
            self._timeout_s,
            None if counting is None else ctypes.pointer(counting),
        )
        self._run(request)
        return grid3, block3, [array.name.decode() for array in arrays]

    def _run(self, request: _Request) -> None:
        # Shared with the process that runs the kernel, like the arrays.
        page = mmap.mmap(-1, ctypes.sizeof(RawReport))
        report = RawReport.from_buffer(page)
        status = self._runtime.emu_launch(ctypes.byref(request), ctypes.byref(report))
        if status < 0:
            raise OSError(-status, f"no process for the kernel: {os.strerror(-status)}")
        if status:
            raise fault_from(report, self.name, self._module.library, self._module.source)

    def _shared_arrays(self, dynamic_bytes: int) -> ctypes.Array[_SharedArray]:
        symbols = self._module.shared
        static = sum(s.num_bytes for s in symbols if s.name != DYNAMIC_SHARED)
        if dynamic_bytes < 0 or static + dynamic_bytes > MAX_SHARED_BYTES:
            raise ValueError(
                f"{self.name}: {static} bytes of static and {dynamic_bytes} of dynamic shared "
                f"memory; a block may have {MAX_SHARED_BYTES}"
            )
        if dynamic_bytes > self.max_dynamic_shared_size_bytes:
            raise ValueError(
                f"{self.name}: {dynamic_bytes} bytes of dynamic shared memory, but "
                f"max_dynamic_shared_size_bytes is {self.max_dynamic_shared_size_bytes}"
            )
        if static > DEFAULT_SHARED_BYTES:
            raise ValueError(
                f"{self.name}: {static} bytes of static shared memory; a block may have "
                f"{DEFAULT_SHARED_BYTES}: use dynamic shared memory for more"
            )
        return (_SharedArray * len(symbols))(
            *(
                _SharedArray(
                    s.offset,
                    dynamic_bytes if s.name == DYNAMIC_SHARED else s.num_bytes,
                    s.name.encode()[:47],
                )
                for s in symbols
            )
        )

    def _arguments(self, args: Sequence[Any]) -> tuple[list[Any], list[_GlobalArray]]:
        """The arguments as C values, and the arrays among them."""
        if len(args) != len(self.parameters):
            raise TypeError(
                f"{self.name} takes {len(self.parameters)} arguments, {len(args)} were given"
            )
        values: list[Any] = []
        arrays: list[_GlobalArray] = []
        for i, (code, arg) in enumerate(zip(self.parameters, args, strict=True)):
            if code[:3].isdigit():
                values.append(self._struct(i, int(code[:3]), arg))
            elif code[3] != "*":
                values.append(self._scalar(i, code[:3], arg))
            elif _is_null(arg):
                values.append(ctypes.c_void_p(None))
            else:
                array = self._array(i, code[:3], arg)
                values.append(ctypes.c_void_p(array.begin))
                arrays.append(array)
        return values, arrays

    def _label(self, i: int) -> str:
        return f"{self.name}, argument {i} ({self.parameter_names[i]})"

    def _struct(self, i: int, num_bytes: int, arg: Any) -> Any:
        is_struct = type(arg) is np.ndarray and arg.shape == () and arg.dtype.names
        if not is_struct or arg.nbytes != num_bytes:
            raise TypeError(
                f"{self._label(i)}: the kernel takes a 0-d array of a structured dtype of "
                f"{num_bytes} bytes, {_describe(arg)} was given"
            )
        return (ctypes.c_char * num_bytes).from_buffer_copy(arg.tobytes())

    def _scalar(self, i: int, code: str, arg: Any) -> Any:
        wanted = np.dtype(_DTYPES[code])
        if not isinstance(arg, np.generic) or arg.dtype != wanted:
            raise TypeError(
                f"{self._label(i)}: the kernel takes a {wanted}, {_describe(arg)} was given"
            )
        return (ctypes.c_char * wanted.itemsize).from_buffer_copy(arg.tobytes())

    def _array(self, i: int, code: str, arg: Any) -> _GlobalArray:
        label = self._label(i)
        if not isinstance(arg, EmulatedArray):
            raise TypeError(
                f"{label}: the kernel takes an EmulatedArray, {_describe(arg)} was given"
            )
        memory = memory_of(arg)
        if memory is None:
            raise TypeError(f"{label}: the array is not in emulated device memory: use emulated()")
        if not arg.flags.c_contiguous:
            raise ValueError(f"{label}: the array of shape {arg.shape} is not C-contiguous")
        if code != "any" and arg.dtype != _DTYPES[code]:
            raise TypeError(
                f"{label}: the kernel takes {_DTYPES[code]} elements, {_describe(arg)} was given"
            )
        return _global_array(self.parameter_names[i], arg, memory)


def _global_array(name: str, arg: EmulatedArray, memory: DeviceMemory) -> _GlobalArray:
    return _GlobalArray(
        arg.ctypes.data,
        arg.nbytes,
        memory.begin,
        memory.num_bytes,
        min(arg.itemsize, 4),  # accesses are remembered by element; one of 64 bits counts as two
        arg.itemsize,
        name.encode()[:47],
    )


def _is_null(arg: Any) -> bool:
    return arg is None or (isinstance(arg, np.integer) and int(arg) == 0)


def _describe(arg: Any) -> str:
    if isinstance(arg, np.ndarray):
        return f"a {type(arg).__name__} of {arg.dtype}"
    return f"a {type(arg).__name__}"


def _dimensions(label: str, given: Sequence[int], largest: _Sizes) -> _Sizes:
    sizes = tuple(int(n) for n in given)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"{label} {sizes}: one to three dimensions are needed")
    padded = (*sizes, 1, 1)[:3]
    if any(not 1 <= n <= most for n, most in zip(padded, largest, strict=True)):
        raise ValueError(
            f"{label} {sizes}: each dimension must be at least 1 and at most {largest}"
        )
    return (padded[0], padded[1], padded[2])
