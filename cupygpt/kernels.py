"""Declare, launch and precompile the kernels in cuda/.

A kernel is declared once, in the file of the op that uses it:

    _forward = Kernel("gelu.cu", "gelu_forward", "out:floatX* inp:floatX* n:i64")

and called with arrays and plain Python numbers:

    _forward(out, inp, n, grid=ceil_div(n, 1024), block=256)

CuPy checks nothing of a raw launch (a Python 1.0 arrives at a `float` parameter as 0.0, a transposed
view is read as if it were contiguous, an empty grid runs one block); `Kernel` does. The element type
`floatX` of a .cu file is chosen by the arrays: float32, or bfloat16 stored as uint16.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cupygpt.errors import KernelError
from cupygpt.nvrtc import compile_options, load_cupy_module
from cupygpt.tensors import Array

Defines = Mapping[str, int]

FLOATX_TYPES = {np.dtype(np.float32): "float", np.dtype(np.uint16): "__nv_bfloat16"}
"""C++ type of floatX by the dtype of the arrays."""

DEFAULT_SHARED_BYTES = 48 << 10
"""Shared memory, static and dynamic, that a block gets without asking for more."""

PACK_BYTES = 16
"""Size of the 128-bit accesses in cuda/common.cuh."""

ROW_THREADS = 256
"""Most threads of a block that `rows_launch` chooses."""

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


class Module(Protocol):
    """A compiled .cu file."""

    def get_function(self, name: str) -> Any:
        """The kernel `name`, a Function."""


Loader = Callable[[Path, tuple[str, ...]], Module]

Job = tuple[type, str, str, tuple[tuple[str, int], ...], str]
"""What one compilation follows from: array type, .cu file, floatX, constants and architecture."""

_collected: dict[Job, None] | None = None
"""While `collect` runs: the jobs found so far, in order."""

_kernels: list["Kernel"] = []
_loaders: dict[type, Loader] = {}
_modules: dict[Any, Module] = {}


def register_loader(array_type: type, loader: Loader) -> None:
    """Run kernels on arrays of exactly `array_type` through `loader(path, options)`."""
    _loaders[array_type] = loader


def ceil_div(numerator: int, denominator: int) -> int:
    """numerator / denominator, rounded up."""
    return -(-numerator // denominator)


def num_lanes(array: Array) -> int:
    """Elements that one 128-bit access moves: 4 of float32, 8 of bfloat16."""
    return PACK_BYTES // int(array.itemsize)


@dataclass(frozen=True)
class Multiprocessors:
    """Those of a GPU: how many, and the shared memory that the blocks of one have together."""

    count: int
    shared_bytes: int
    shared_bytes_of_block: int


EMULATED = Multiprocessors(2, 100 << 10, 99 << 10)
"""What `multiprocessors` reports where there is no GPU: few blocks, each with several rounds."""


def multiprocessors(array: Array) -> Multiprocessors:
    """Those of the GPU that an array lies on."""
    index = getattr(getattr(array, "device", None), "id", None)
    return EMULATED if index is None else _multiprocessors_of_gpu(index)


@cache
def _multiprocessors_of_gpu(index: int) -> Multiprocessors:
    import cupy

    attributes = cupy.cuda.Device(index).attributes
    return Multiprocessors(
        attributes["MultiProcessorCount"],
        attributes["MaxSharedMemoryPerMultiprocessor"],
        attributes["MaxSharedMemoryPerBlockOptin"],
    )


def num_packs(array: Array) -> int:
    """How many 128-bit accesses cover an array.

    Raises KernelError if its size is not a whole number of them; with the multiples of 8 channels
    that GPTConfig demands, it always is.
    """
    size, lanes = int(array.size), num_lanes(array)
    if size % lanes:
        raise KernelError(f"an array of {size} elements: kernels need a multiple of {lanes}.")
    return size // lanes


def is_hopper(array: Array) -> bool:
    """Whether the array's device has wgmma: compute capability 9.0, no other."""
    return getattr(getattr(array, "device", None), "compute_capability", "") == "90"


def rows_launch(num_rows: int, packs_per_row: int) -> dict[str, Any]:
    """grid and block for a kernel whose threads (x, y) take pack x, x + blockDim.x, … of row y."""
    rounds = ceil_div(packs_per_row, ROW_THREADS)
    x = ceil_div(packs_per_row, rounds)
    y = max(1, ROW_THREADS // x)
    return {"grid": ceil_div(num_rows, y), "block": (x, y)}


def find_cuda_dir() -> Path:
    """The folder with the .cu files: inside an installed package, or beside it in a checkout.

    Raises KernelError if it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "cuda", package.parent / "cuda"):
        if (folder / "common.cuh").is_file():
            return folder
    raise KernelError(
        f"the kernels (common.cuh, *.cu) are neither in {package / 'cuda'} nor in "
        f"{package.parent / 'cuda'}. Install cupygpt again."
    )


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
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        shared_mem: int = 0,
        defines: Defines | None = None,
        like: Array | None = None,
    ) -> None:
        """Launch on the current stream; nothing happens if the grid is empty.

        `shared_mem` is in bytes. `defines` are integer constants for the compiler (-DNAME=VALUE);
        each set of them is compiled on its own. A kernel without floatX arrays runs in the variant
        of its file that suits `like`. Raises KernelError for arguments that do not fit the
        declaration, and for a file that does not compile.
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
        grid3, block3 = _three(grid), _three(block)
        if 0 in grid3:
            return
        launcher = self._launcher(place, defines)
        if launcher is None:
            return
        launcher.raise_shared_limit(shared_mem)
        launcher.function(grid3, block3, tuple(values), shared_mem=shared_mem)

    def forget(self) -> None:
        """Load the kernel anew at its next launch."""
        self._launchers.clear()

    def _launcher(self, place: "_Place", defines: Defines | None) -> "_Launcher | None":
        """The compiled kernel; None while `collect` only takes notes."""
        constants = tuple(sorted(defines.items())) if defines else ()
        key = (place.kind, place.device, place.dtype, constants)
        launcher = self._launchers.get(key)
        if launcher is not None and _collected is None:
            return launcher
        if place.kind is None:
            raise KernelError(f"{self.name}: a launch needs at least one array.")
        floatX = FLOATX_TYPES[place.dtype] if place.dtype is not None else "float"
        job = (place.kind, self.file, floatX, constants, self.arch)
        if _collected is not None:
            _collected[job] = None
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


def load_module(
    array_type: type,
    file: str,
    floatX: str,
    constants: tuple[tuple[str, int], ...],
    arch: str = "",
) -> Module:
    """The compiled form of cuda/`file` for arrays of a type; compiled once per set of options.

    Raises KernelError if there is no such file, no way to run kernels on such arrays, or if the
    file does not compile.
    """
    key = (array_type, file, floatX, constants, arch)
    if key not in _modules:
        cuda_dir = find_cuda_dir()
        path = cuda_dir / file
        if not path.is_file():
            raise KernelError(f"{path}: no such file.")
        options = compile_options(cuda_dir, floatX, dict(constants), arch)
        _modules[key] = _loader_for(array_type)(path, options)
    return _modules[key]


def collect(function: Callable[[], None]) -> list[Job]:
    """What the launches inside `function` need compiled; nothing is launched meanwhile.

    That way the list of kernels follows from the code that launches them.
    """
    global _collected
    _collected = {}
    try:
        function()
        return list(_collected)
    finally:
        _collected = None


def precompile(
    jobs: Sequence[Job],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    set_up_thread: Callable[[], None] = lambda: None,
) -> None:
    """Compile what `collect` found, in parallel.

    `progress(done, total)` is called after each file; `set_up_thread` in each thread before its
    first (a thread starts on CUDA device 0). Raises the first KernelError.
    """
    with ThreadPoolExecutor(initializer=set_up_thread) as pool:
        futures = [pool.submit(load_module, *job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def forget_compiled() -> None:
    """Load each kernel anew at its next launch, so that an edited .cu file takes effect."""
    _modules.clear()
    for kernel in _kernels:
        kernel.forget()


def _loader_for(array_type: type) -> Loader:
    if array_type in _loaders:
        return _loaders[array_type]
    if array_type.__module__.partition(".")[0] == "cupy":
        return load_cupy_module
    raise KernelError(f"kernels do not run on arrays of type {array_type.__name__}.")


def _three(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    if isinstance(size, tuple):
        x, y, z = (*size, 1, 1)[:3]
        return x, y, z
    return size, 1, 1
