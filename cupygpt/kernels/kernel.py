"""Declare and launch the kernels in cuda/.

A kernel is declared once, in the file of the op that uses it:

    _forward = Kernel("gelu.cu", "gelu_forward", "out:floatX* inp:floatX* n:i64")

and called with arrays and plain Python numbers:

    _forward(out, inp, n, launch=Launch(grid=ceil_div(n, 1024), block=256))

CuPy checks nothing of a raw launch (a Python 1.0 arrives at a `float` parameter as 0.0, a transposed
view is read as if it were contiguous, an empty grid runs one block); `Kernel` does. The element type
`floatX` of a .cu file is chosen by the arrays: float32, or bfloat16 stored as uint16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cupygpt.arrays import Array
from cupygpt.errors import KernelError
from cupygpt.kernels.launch import Defines, Launch
from cupygpt.kernels.load import FLOATX_TYPES, forget_modules, is_recording, load_module, record

DEFAULT_SHARED_BYTES = 48 << 10
"""Shared memory, static and dynamic, that a block gets without asking for more."""

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
    """Set before the first launch whose blocks need more than DEFAULT_SHARED_BYTES in all."""

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


class Kernel:
    """One entry point of a .cu file, with the types of its parameters.

    `parameters` are `name:type` words: f32 f64 i32 i64 u16 u32 u64 for scalars; the same, or
    floatX, with `*` for arrays, and with `*?` for arrays that may be None (a null pointer). `arch`
    (sm_90a) is for files that need instructions of one architecture only; others are compiled for
    the device at hand.
    """

    def __init__(self, file: str, name: str, parameters: str, *, arch: str = "") -> None:
        self.file, self.name, self.arch = file, name, arch
        self.parameters = [_Parameter.parse(word) for word in parameters.split()]
        self._launchers: dict[Any, _Launcher] = {}
        _kernels.append(self)

    def __call__(
        self,
        *args: Any,
        launch: Launch,
        like: Array | None = None,
    ) -> None:
        """Launch on the current stream; nothing happens if the grid is empty.

        Each set of `launch.defines` is compiled on its own. A kernel without floatX arrays runs in
        the variant of its file that suits `like`. Raises KernelError for arguments that do not fit
        the declaration, and for a file that does not compile.
        """
        if len(args) != len(self.parameters):
            raise KernelError(
                f"{self.name} takes {len(self.parameters)} arguments, {len(args)} were given."
            )
        place, values = _Place(like), []
        for parameter, arg in zip(self.parameters, args, strict=True):
            try:
                values.append(parameter.accept(arg))
                if parameter.is_array and arg is not None:
                    place.add(arg, is_floatX=parameter.is_floatX)
            except ValueError as error:
                raise KernelError(f"{self.name}: argument '{parameter.name}' {error}.") from None
        grid3, block3 = _three(launch.grid), _three(launch.block)
        if 0 in grid3:
            return
        launcher = self._launcher(place, launch.defines)
        if launcher is None:
            return
        launcher.raise_shared_limit(launch.shared_bytes)
        launcher.function(grid3, block3, tuple(values), shared_mem=launch.shared_bytes)

    def forget(self) -> None:
        """Load the kernel anew at its next launch."""
        self._launchers.clear()

    def _launcher(self, place: "_Place", defines: Defines) -> "_Launcher | None":
        """The compiled kernel; None while `record_kernels` only takes notes."""
        constants = tuple(sorted(defines.items()))
        key = (place.kind, place.device, place.dtype, constants)
        launcher = self._launchers.get(key)
        if launcher is not None and not is_recording():
            return launcher
        if place.kind is None:
            raise KernelError(f"{self.name}: a launch needs at least one array.")
        floatX = FLOATX_TYPES[place.dtype] if place.dtype is not None else "float"
        job = (place.kind, self.file, floatX, constants, self.arch)
        if is_recording():
            record(job)
            return None
        launcher = _Launcher(load_module(*job).get_function(self.name))
        self._launchers[key] = launcher
        return launcher


class _Place:
    """Where the arrays of one launch live, and which variant of the kernel they take."""

    __slots__ = ("device", "dtype", "kind")

    def __init__(self, like: Array | None) -> None:
        self.kind: type | None = None
        self.device: Any = None
        self.dtype: np.dtype[Any] | None = None if like is None else like.dtype

    def add(self, array: Array, *, is_floatX: bool) -> None:
        """Raises ValueError for an array that does not agree with those before it."""
        device = getattr(getattr(array, "device", None), "id", None)
        if self.kind is None:
            self.kind, self.device = type(array), device
        elif type(array) is not self.kind or device != self.device:
            raise ValueError(
                f"is a {type(array).__name__} on {device}, others are {self.kind.__name__} "
                f"on {self.device}"
            )
        if is_floatX and array.dtype is not self.dtype and array.dtype != self.dtype:
            if self.dtype is not None:
                raise ValueError(f"is {array.dtype}, another floatX array is {self.dtype}")
            self.dtype = array.dtype


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    dtype: np.dtype[Any] | None
    """None for floatX."""
    is_array: bool
    optional: bool
    is_floatX: bool

    @classmethod
    def parse(cls, word: str) -> "_Parameter":
        name, _, code = word.partition(":")
        optional, code = code.endswith("?"), code.removesuffix("?")
        is_array, code = code.endswith("*"), code.removesuffix("*")
        assert code in _DTYPES or (code == "floatX" and is_array), word
        assert is_array or not optional, word
        return cls(name, _DTYPES.get(code), is_array, optional, is_floatX=code == "floatX")

    def accept(self, value: Any) -> Any:
        """What CuPy is to be given for this parameter; raises ValueError if it does not fit."""
        return self._array(value) if self.is_array else self._scalar(value)

    def _array(self, array: Any) -> Any:
        if array is None:
            if self.optional:
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

    def _scalar(self, value: Any) -> Any:
        assert self.dtype is not None
        if self.dtype.kind == "f":
            if not isinstance(value, _NUMBERS) or isinstance(value, bool):
                raise ValueError(f"is a {type(value).__name__}, not a number")
        elif not isinstance(value, _INTEGERS) or isinstance(value, bool):
            raise ValueError(f"is a {type(value).__name__}, not an integer")
        else:
            least, most = _LIMITS[self.dtype]
            if not least <= value <= most:
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
class _Launcher:
    """A compiled kernel, and how much dynamic shared memory it has been allowed."""

    function: Function
    shared_limit: int = field(init=False)

    def __post_init__(self) -> None:
        self.shared_limit = DEFAULT_SHARED_BYTES - self.function.shared_size_bytes

    def raise_shared_limit(self, shared_mem: int) -> None:
        if shared_mem > self.shared_limit:
            self.function.max_dynamic_shared_size_bytes = shared_mem
            self.shared_limit = shared_mem


def forget_compiled() -> None:
    """Load each kernel anew at its next launch, so that an edited .cu file takes effect."""
    forget_modules()
    for kernel in _kernels:
        kernel.forget()


def _three(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    if isinstance(size, tuple):
        x, y, z = (*size, 1, 1)[:3]
        return x, y, z
    return size, 1, 1
