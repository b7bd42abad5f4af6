"""Declare and launch the kernels in cuda/.

A kernel is declared once, in the file of the op that uses it:

    _forward = Kernel("gelu.cu", "gelu_forward", "out:floatX* inp:floatX* num_packs:i64")

and called with arrays and plain Python numbers:

    _forward(out, inp, n, launch=Launch(grid=ceil_div(n, 256), block=256))

CuPy does not check the arguments of a raw kernel: a Python 1.0 arrives at a `float` parameter as
0.0 (8 bytes are passed, the lower 4 are read), a transposed view is read as if it were contiguous,
and an empty grid runs one block. `Kernel` checks them. The element type floatX of a .cu file
follows from the arrays: float for float32 arrays, __nv_bfloat16 for uint16 arrays, which hold the
bits of bfloat16 numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cupygpt.arrays import Array
from cupygpt.errors import KernelError
from cupygpt.kernels.launch import DEFAULT_SHARED_BYTES, Defines, Launch
from cupygpt.kernels.load import (
    FLOATX_TYPES,
    Variant,
    forget_modules,
    is_recording,
    load_module,
    record,
)

_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
}


class Function(Protocol):
    """A compiled kernel, in the call form of CuPy's RawKernel."""

    shared_size_bytes: int
    """Static shared memory of a block."""
    max_dynamic_shared_size_bytes: int
    """To be set before a launch whose blocks need more than DEFAULT_SHARED_BYTES in all."""

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Any],
        *,
        shared_mem: int,
    ) -> None:
        """Put the kernel on the current stream."""


_kernels: list["Kernel"] = []
"""Every kernel that has been declared."""


class Kernel:
    """One entry point of a .cu file, with the types of its parameters.

    `parameters` are `name:type` words. The types are

    - f32 f64 i32 i64 u16 u32 u64: a number, passed by value;
    - one of these, or floatX, followed by `*`: an array; followed by `*?`: an array or None, which
      arrives as a null pointer;
    - a key of `structs`: a struct of the .cu file, passed by value. Its argument is a 0-d NumPy
      array of the structured dtype that `structs` gives for it, laid out as in C (align=True).

    `arch` (sm_90a) is for files that need instructions of one architecture only. Other files are
    compiled for the device of the arrays.
    """

    def __init__(
        self,
        file: str,
        name: str,
        parameters: str,
        *,
        arch: str = "",
        structs: Mapping[str, np.dtype[Any]] | None = None,
    ) -> None:
        self.file, self.name, self.arch = file, name, arch
        types = _DTYPES | dict(structs or {})
        self.parameters = [_Parameter.parse(word, types) for word in parameters.split()]
        self._loaded: dict[Any, _LoadedKernel] = {}
        _kernels.append(self)

    def __call__(
        self,
        *args: Any,
        launch: Launch,
        like: Array | None = None,
    ) -> None:
        """Launch on the current stream; nothing happens if the grid is empty.

        The GPU of the arrays must be the current device. Each combination of `launch.defines`,
        floatX and type of array is a variant of the file, compiled separately. `like` is an array
        whose dtype chooses floatX for a kernel without floatX arrays; without `like`, their floatX
        is float. Raises KernelError for arguments that do not fit the declaration, and for a file
        that does not compile.
        """
        if len(args) != len(self.parameters):
            raise KernelError(
                f"{self.name} takes {len(self.parameters)} arguments, {len(args)} were given."
            )
        target, values = _Target(like), []
        for parameter, arg in zip(self.parameters, args, strict=True):
            try:
                values.append(parameter.checked(arg))
                if parameter.is_array and arg is not None:
                    target.add(arg, is_floatX=parameter.is_floatX)
            except ValueError as error:
                raise KernelError(f"{self.name}: argument '{parameter.name}' {error}.") from None
        grid, block = _three_dimensions(launch.grid), _three_dimensions(launch.block)
        if 0 in grid:
            return
        variant = self._variant(target, launch.defines)
        if is_recording():
            record(variant, self.name)
            return
        kernel = self._load(variant, target.device)
        kernel.allow_shared(launch.shared_bytes)
        kernel.function(grid, block, tuple(values), shared_mem=launch.shared_bytes)

    def forget(self) -> None:
        """Load the kernel again at its next launch."""
        self._loaded.clear()

    def _load(self, variant: Variant, device: Any) -> "_LoadedKernel":
        """The kernel, compiled. Kept per GPU: the shared-memory limit must be raised on each."""
        kernel = self._loaded.get((variant, device))
        if kernel is None:
            kernel = _LoadedKernel(load_module(variant).get_function(self.name))
            self._loaded[variant, device] = kernel
        return kernel

    def _variant(self, target: "_Target", defines: Defines) -> Variant:
        if target.array_type is None:
            raise KernelError(f"{self.name}: a launch needs at least one array.")
        floatX = FLOATX_TYPES.get(_FLOAT32 if target.dtype is None else target.dtype)
        if floatX is None:
            raise KernelError(
                f"{self.name}: `like` is {target.dtype}; floatX is float32 or bfloat16 (uint16)."
            )
        constants = tuple(sorted(defines.items()))
        return Variant(target.array_type, self.file, floatX, constants, self.arch)


class _Target:
    """What the arrays of one launch have in common: their type, device and dtype of floatX."""

    __slots__ = ("array_type", "device", "dtype")

    def __init__(self, like: Array | None) -> None:
        self.array_type: type | None = None
        self.device: Any = None
        self.dtype: np.dtype[Any] | None = None if like is None else like.dtype

    def add(self, array: Array, *, is_floatX: bool) -> None:
        """Raises ValueError for an array that does not agree with those before it."""
        device = getattr(getattr(array, "device", None), "id", None)
        if self.array_type is None:
            self.array_type, self.device = type(array), device
        elif type(array) is not self.array_type or device != self.device:
            raise ValueError(
                f"is a {type(array).__name__} on {device}, others are "
                f"{self.array_type.__name__} on {self.device}"
            )
        # `is` first, here and below: it is faster, and usually true.
        if is_floatX and array.dtype is not self.dtype and array.dtype != self.dtype:
            if self.dtype is not None:
                raise ValueError(f"is {array.dtype}, another floatX array is {self.dtype}")
            self.dtype = array.dtype


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    type: str
    """As declared, without `*` and `?`."""
    dtype: np.dtype[Any] | None
    """None for floatX."""
    is_array: bool
    is_optional: bool

    @classmethod
    def parse(cls, word: str, types: Mapping[str, np.dtype[Any]]) -> "_Parameter":
        name, _, code = word.partition(":")
        is_optional, code = code.endswith("?"), code.removesuffix("?")
        is_array, code = code.endswith("*"), code.removesuffix("*")
        assert code in types or (code == "floatX" and is_array), word
        assert is_array or not is_optional, word
        return cls(name, code, types.get(code), is_array, is_optional)

    @property
    def is_floatX(self) -> bool:
        return self.dtype is None

    def checked(self, value: Any) -> Any:
        """`value` as CuPy takes it for this parameter; raises ValueError if it does not fit."""
        if self.is_array:
            return self._array(value)
        assert self.dtype is not None
        return self._struct(value) if self.dtype.names else self._number(value)

    def _array(self, array: Any) -> Any:
        if array is None:
            if self.is_optional:
                return _NULL
            raise ValueError("is None")
        dtype = getattr(array, "dtype", None)
        if dtype is None:
            raise ValueError(f"is a {type(array).__name__}, not an array")
        if self.dtype is None:
            if dtype is not _FLOAT32 and dtype not in FLOATX_TYPES:
                raise ValueError(f"is {dtype}; floatX is float32 or bfloat16 (uint16)")
        elif dtype is not self.dtype and dtype != self.dtype:
            raise ValueError(f"is {dtype}, not {self.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(f"of shape {array.shape} is not C-contiguous")
        return array

    def _struct(self, value: Any) -> Any:
        # CuPy passes a NumPy array of size one by value: it copies its bytes at the launch.
        if type(value) is not np.ndarray or value.dtype != self.dtype or value.shape != ():
            raise ValueError(
                f"is a {type(value).__name__}, not a 0-d NumPy array of the dtype of {self.type}"
            )
        return value

    def _number(self, value: Any) -> Any:
        assert self.dtype is not None
        if self.dtype.kind == "f":
            if not isinstance(value, _NUMBERS) or isinstance(value, bool):
                raise ValueError(f"is a {type(value).__name__}, not a number")
        elif not isinstance(value, _INTEGERS) or isinstance(value, bool):
            raise ValueError(f"is a {type(value).__name__}, not an integer")
        else:
            smallest, largest = _LIMITS[self.dtype]
            if not smallest <= value <= largest:
                raise ValueError(f"is {value}, which no {self.dtype} holds")
        return self.dtype.type(value)


_NULL = np.uint64(0)
_FLOAT32 = np.dtype(np.float32)
_INTEGERS = (int, np.integer)
_NUMBERS = (int, float, np.integer, np.floating)
_LIMITS = {
    dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for dtype in _DTYPES.values()
    if dtype.kind in "iu"
}


@dataclass
class _LoadedKernel:
    """A compiled kernel, and the dynamic shared memory that its blocks may have so far."""

    function: Function
    allowed_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.allowed_bytes = DEFAULT_SHARED_BYTES - self.function.shared_size_bytes

    def allow_shared(self, num_bytes: int) -> None:
        """Let blocks have this much dynamic shared memory."""
        if num_bytes > self.allowed_bytes:
            self.function.max_dynamic_shared_size_bytes = num_bytes
            self.allowed_bytes = num_bytes


def forget_compiled() -> None:
    """Load each kernel again at its next launch, so that an edited .cu file takes effect."""
    forget_modules()
    for kernel in _kernels:
        kernel.forget()


def _three_dimensions(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    if isinstance(size, tuple):
        x, y, z = (*size, 1, 1)[:3]
        return x, y, z
    return size, 1, 1
