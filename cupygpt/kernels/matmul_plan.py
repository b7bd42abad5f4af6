"""From a call to a plan: describe the product in cuBLASLt's terms, and choose its algorithm.

Describe (`problem_of`). cuBLASLt's matrices are column-major. The memory of a row-major (M, N)
array is that of a column-major (N, M) matrix, its transpose. Therefore out = a b is computed as
outᵀ = bᵀ aᵀ, with the operands exchanged.

Choose (`choose_algorithm`): the fastest of the algorithms that cuBLASLt proposes, as measured. Its
own ranking is up to 15 % slower than the best for some shapes. The choice affects the last bits of
a result, so it is made once and saved: in the user's cache, for the next run on this machine, and
in the run folder, so that a resumed run repeats bit for bit.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cupygpt.arrays import Array
from cupygpt.cache_dir import cache_dir
from cupygpt.errors import KernelError, RunError
from cupygpt.files import atomic_write
from cupygpt.kernels import cublaslt

Epilogue = Literal["gelu", "dgelu"]

_TYPE_NAMES = {"f": "float32", "H": "bfloat16"}
_BASE_ALIGNMENT = 256
_AUX_MULTIPLE = 8  # cuBLASLt requires it of the leading dimension of the GELU's input

Signature = tuple[tuple[int, ...], tuple[int, ...], str, int, int]


def signature(array: Array) -> Signature:
    """What a plan depends on: shape, strides, type, alignment of the address in bytes, device."""
    memory = array.data
    address = memory.ptr | _BASE_ALIGNMENT
    return array.shape, array.strides, array.dtype.char, address & -address, memory.device_id


@dataclass(frozen=True)
class Operand:
    """A row-major 2-D array as cuBLASLt sees it: rows and columns exchanged.

    `leading` is the distance in elements from one row of the array to the next.
    """

    type_code: str
    rows: int
    cols: int
    leading: int
    alignment: int

    @classmethod
    def of(cls, name: str, signature: Signature) -> "Operand":
        """Raises KernelError where the array is not 2-D, or its rows are not contiguous."""
        shape, strides, type_code, alignment, _ = signature
        if len(shape) != 2:
            raise KernelError(f"{name} has shape {shape}: products take 2-D arrays.")
        if 0 in shape:
            raise KernelError(f"{name} has shape {shape}: a product cannot sum over nothing.")
        if type_code not in _TYPE_NAMES:
            raise KernelError(
                f"{name} has dtype '{type_code}': products take float32, and bfloat16 as uint16."
            )
        itemsize = 4 if type_code == "f" else 2
        num_rows, width = shape
        leading = strides[0] // itemsize if num_rows > 1 else width
        if (width > 1 and strides[1] != itemsize) or strides[0] % itemsize or leading < width:
            raise KernelError(
                f"{name} {shape} has strides {strides} bytes: its rows must be contiguous and must "
                f"not overlap (copy it, or pass the untransposed array and a transpose flag)."
            )
        return cls(type_code, width, num_rows, leading, alignment)

    @property
    def type_name(self) -> str:
        """For messages."""
        return _TYPE_NAMES[self.type_code]


@dataclass(frozen=True)
class Problem:
    """One kind of matrix product in cuBLASLt's terms: D (m, n) = op(A) (m, k) op(B) (k, n).

    A is the caller's b and B the caller's a, because column-major exchanges them.
    """

    A: Operand
    B: Operand
    D: Operand
    transpose_A: bool
    transpose_B: bool
    accumulate: bool
    compute: int
    epilogue: int
    bias_alignment: int | None
    aux_alignment: int | None
    aux_leading: int

    @property
    def k(self) -> int:
        """Terms of each sum."""
        return self.A.rows if self.transpose_A else self.A.cols

    @property
    def flops(self) -> int:
        """Floating-point operations of the product."""
        return 2 * self.D.rows * self.D.cols * self.k

    def describe(self) -> str:
        """The product as the caller wrote it, for messages."""
        a, b, out = self.B, self.A, self.D
        extras = [f"epilogue {self.epilogue}"] if self.epilogue != cublaslt.EPILOGUE_DEFAULT else []
        if self.compute == cublaslt.COMPUTE_TF32:
            extras.append("TF32")
        left = f"({a.cols}, {a.rows}){'ᵀ' if self.transpose_B else ''}"
        right = f"({b.cols}, {b.rows}){'ᵀ' if self.transpose_A else ''}"
        return (
            f"product out ({out.cols}, {out.rows}) {out.type_name} "
            f"{'+=' if self.accumulate else '='} {left} @ {right} {a.type_name}"
            + "".join(f", {extra}" for extra in extras)
        )

    def identity(self) -> str:
        """All that the choice of an algorithm depends on, apart from GPU and library."""
        operands = (self.B, self.A, self.D)
        return (
            f"{self.describe()}; rows {'/'.join(str(x.leading) for x in operands)} apart, aligned "
            f"to {'/'.join(str(x.alignment) for x in operands)}, bias {self.bias_alignment}, "
            f"aux {self.aux_alignment} {self.aux_leading}"
        )


def problem_of(key: tuple[Any, ...]) -> Problem:
    """Check that the arrays of a call fit together, and describe the product for cuBLASLt.

    `key` is the key that `matmul` has for its plans: five signatures (or None), then its options.
    Raises KernelError that names what does not fit.
    """
    out_sig, a_sig, b_sig, bias_sig, aux_sig = key[:5]
    transpose_a, transpose_b, accumulate, epilogue, tf32 = key[5:]
    out, a, b = Operand.of("out", out_sig), Operand.of("a", a_sig), Operand.of("b", b_sig)
    M, K = (a.rows, a.cols) if transpose_a else (a.cols, a.rows)
    K_of_b, N = (b.rows, b.cols) if transpose_b else (b.cols, b.rows)
    if K_of_b != K or (out.cols, out.rows) != (M, N):
        raise KernelError(
            f"shapes do not fit: out {out_sig[0]} from a {a_sig[0]}{'ᵀ' if transpose_a else ''} "
            f"@ b {b_sig[0]}{'ᵀ' if transpose_b else ''}."
        )
    if a.type_code != b.type_code or (a.type_code == "f" and out.type_code == "H"):
        raise KernelError(
            f"types do not fit: out {out.type_name} from {a.type_name} @ {b.type_name}."
        )
    devices = {signature[4] for signature in key[:5] if signature is not None}
    if len(devices) > 1:
        raise KernelError(f"the arrays of a product lie on different GPUs: {sorted(devices)}.")
    if bias_sig is not None:
        _check_bias(bias_sig, N, out.type_code)
    aux = None if aux_sig is None else _aux_operand(aux_sig, out, epilogue)
    if accumulate and epilogue is not None:
        raise KernelError(f'epilogue "{epilogue}" does not add to out: accumulate must be False.')
    return Problem(
        A=b,
        B=a,
        D=out,
        transpose_A=transpose_b,
        transpose_B=transpose_a,
        accumulate=accumulate,
        compute=(
            cublaslt.COMPUTE_TF32 if tf32 and a.type_code == "f" else cublaslt.COMPUTE_FLOAT32
        ),
        epilogue=_epilogue_flags(epilogue, bias=bias_sig is not None, aux=aux is not None),
        bias_alignment=None if bias_sig is None else bias_sig[3],
        aux_alignment=None if aux is None else aux.alignment,
        aux_leading=0 if aux is None else aux.leading,
    )


def _check_bias(signature: Signature, N: int, type_code: str) -> None:
    shape, strides, bias_type, _, _ = signature
    itemsize = 4 if type_code == "f" else 2
    if shape != (N,) or bias_type != type_code or (N > 1 and strides[0] != itemsize):
        raise KernelError(
            f"bias has shape {shape}, dtype '{bias_type}' and strides {strides}: "
            f"it must be contiguous, ({N},), and of the result's type."
        )


def _aux_operand(signature: Signature, out: Operand, epilogue: Epilogue | None) -> Operand:
    aux = Operand.of("aux", signature)
    if epilogue is None or (aux.rows, aux.cols) != (out.rows, out.cols):
        raise KernelError(
            f"aux {signature[0]} is the GELU's input: it needs an epilogue, and the shape of out."
        )
    if aux.type_code != out.type_code or aux.leading % _AUX_MULTIPLE:
        raise KernelError(
            f"aux is {aux.type_name} with {aux.leading} elements from row to row: "
            f"it must be {out.type_name}, with a multiple of {_AUX_MULTIPLE}."
        )
    return aux


def _epilogue_flags(epilogue: Epilogue | None, *, bias: bool, aux: bool) -> int:
    if epilogue == "dgelu":
        if bias or not aux:
            raise KernelError('epilogue "dgelu" takes aux, the input of the GELU, and no bias.')
        return cublaslt.EPILOGUE_DGELU | cublaslt.EPILOGUE_AUX
    if epilogue == "gelu":
        flags = cublaslt.EPILOGUE_GELU
        flags |= cublaslt.EPILOGUE_BIAS if bias else 0
        return flags | (cublaslt.EPILOGUE_AUX if aux else 0)
    return cublaslt.EPILOGUE_BIAS if bias else cublaslt.EPILOGUE_DEFAULT


FILE_NAME = "products.json"
"""Holds the choices, in the run folder and in the user's cache folder."""
ROUNDS = 5
"""Timed launches of each algorithm; their median counts."""
LAUNCH_FLOPS = 2e10
"""FLOPs of one timed launch: smaller products are repeated in it, at most MAX_REPEATS times."""
MAX_REPEATS = 8

_choices: dict[str, int] = {}
_is_measuring = False


@contextmanager
def measuring(run_folder: Path | None, *, keep: bool = True) -> Iterator[None]:
    """Inside, the algorithms of each new kind of product are measured, and the choice is saved.

    A measured product is computed many times into its output, so use this while buffers hold
    nothing yet. Without `run_folder` only the user's cache is read and written. Only one rank of a
    run may `keep` its choices: otherwise all ranks would write the same files at once.
    """
    global _is_measuring
    _choices.update(_read(cache_file()))
    if run_folder is not None:
        _choices.update(_read(run_folder / FILE_NAME))  # the run's own choices win
    known = len(_choices)
    _is_measuring = True
    try:
        yield
    finally:
        _is_measuring = False
    if not keep:
        return
    if run_folder is not None and _read(run_folder / FILE_NAME) != _choices:
        _write(run_folder / FILE_NAME, _choices)
    path = cache_file()
    if len(_choices) > known and path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, {**_choices, **_read(path)})  # another run may have written
        except (OSError, RunError):
            return  # the next run measures again; this run has its choices in its own folder


def choose_algorithm(
    identity: str, candidates: Sequence[Callable[[], None]], flops: int, stream: Any
) -> int:
    """Index of the algorithm for the product `identity` among the `candidates`.

    A candidate is a function that queues the product on `stream`. The choice is 0, the first in
    cuBLASLt's ranking, unless the product has been measured or is measured now.
    """
    if identity not in _choices and _is_measuring and len(candidates) > 1:
        repeats = max(1, min(MAX_REPEATS, int(LAUNCH_FLOPS / flops)))
        _choices[identity] = _fastest(candidates, repeats, stream)
    return _choices.get(identity, 0)


def cache_file() -> Path | None:
    """The user's cache: a file in the cache folder; None if there is none."""
    folder = cache_dir()
    return None if folder is None else folder / FILE_NAME


def _fastest(candidates: Sequence[Callable[[], None]], repeats: int, stream: Any) -> int:
    """The index of the fastest candidate, timed as a graph: the GPU never waits for the host."""
    import cupy

    graphs: dict[int, Any] = {}
    for index, candidate in enumerate(candidates):
        try:
            candidate()  # loads its code
        except KernelError:
            continue  # cuBLASLt proposed it, but cannot run it
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
        try:
            for _ in range(repeats):
                candidate()
        finally:
            graphs[index] = stream.end_capture()
    if not graphs:
        return 0  # the real call raises the error
    spans: dict[int, list[tuple[Any, Any]]] = {index: [] for index in graphs}
    for _ in range(ROUNDS):
        for index, graph in graphs.items():
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record(stream)
            graph.launch(stream)
            stop.record(stream)
            spans[index].append((start, stop))
    stream.synchronize()
    elapsed = cupy.cuda.get_elapsed_time
    times = {i: statistics.median(elapsed(*events) for events in spans[i]) for i in spans}
    return min(times, key=lambda index: times[index])


def _read(path: Path | None) -> dict[str, int]:
    """The choices in a file; none if it is missing or damaged, and then it is written again."""
    if path is None:
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): max(0, int(choice)) for name, choice in loaded.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, choices: dict[str, int]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(choices, indent=1, ensure_ascii=False).encode())
