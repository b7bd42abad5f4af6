"""Matrix products on the GPU: cuBLASLt with row-major arrays, descriptors cached by shape.

CuPy's own products refuse to run while a stream is captured; these run eagerly and captured. The
first call of a kind makes a plan: it creates the product's cuBLASLt descriptors (under 100 μs), and
takes the algorithm that was measured to be the fastest; without a measurement, the first one that
cuBLASLt proposes. Later calls look the plan up. No call outside `measuring` waits for the device,
and only the first call on a stream allocates memory.

cuBLASLt's own ranking is up to 15 % slower than the best for some shapes. The choice of an
algorithm affects the last bits of a result, so it is made once and saved: in the user's cache, for
the next run on this machine, and in the run folder, so that a resumed run repeats bit for bit.
"""

import ctypes
import json
import statistics
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cupygpt.arrays import Array
from cupygpt.cache_dir import cache_dir
from cupygpt.errors import KernelError, RunError
from cupygpt.files import atomic_write
from cupygpt.kernels import cublaslt
from cupygpt.kernels.cublaslt import Epilogue, Operand, Problem, problem_of, signature

WORKSPACE_BYTES = 32 << 20
"""Scratch memory per stream: NVIDIA's advice for Hopper, ample for older GPUs."""

MAX_CANDIDATES = 16
"""Algorithms that the heuristics are asked for; for most products they propose about 8."""

PRODUCTS = "products.json"
"""Holds the choices, in the run folder and in the user's cache folder."""
ROUNDS = 5
"""Timed launches of each algorithm; their median counts."""
LAUNCH_FLOPS = 2e10
"""FLOPs of one timed launch: smaller products are repeated in it, at most MAX_REPEATS times."""
MAX_REPEATS = 8

_TYPES = {"f": cublaslt.FLOAT32, "H": cublaslt.BFLOAT16}

Matmul = Callable[..., None]
"""A function with the parameters of `matmul`."""

_matmuls: dict[type, Matmul] = {}
_choices: dict[str, int] = {}
_here = threading.local()
"""`is_measuring` on a thread inside `measuring`: what others compute is not repeated."""


def register_matmul(array_type: type, function: Matmul) -> None:
    """Compute products of arrays of exactly `array_type` by `function`, instead of cuBLASLt.

    For a whole example see tests/support/emulated_gpu.py.
    """
    _matmuls[array_type] = function


def matmul(
    out: Array,
    a: Array,
    b: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
    bias: Array | None = None,
    epilogue: Epilogue | None = None,
    aux: Array | None = None,
    tf32: bool = False,
) -> None:
    """out = f(op(a) @ op(b) + bias), where op transposes on demand.

    Written: out (M, N). Read: op(a) (M, K), op(b) (K, N); bias (N,) or None. With `accumulate`,
    out += op(a) @ op(b) + bias, and there is no epilogue. The epilogue chooses f:

    - None: f is the identity.
    - "gelu": f is the tanh form of GELU. Its input is also written to aux (M, N), unless aux is
      None.
    - "dgelu": f multiplies by the derivative of GELU at aux (M, N), which is read. There is no
      bias.

    On an H200 the GELU epilogues save time in bfloat16 only: in TF32 they cost more than a separate
    GELU kernel.

    float32 operands give a float32 result, in true float32 or, with `tf32`, with operands rounded
    to TF32. uint16 operands are bfloat16, summed in float32, for a float32 or bfloat16 result
    (`tf32` does not concern them). bias and aux have the type of out. The last axis must be
    contiguous; rows may lie apart, so row and column slices of a larger array will do. With an
    epilogue and aux, rows of aux must lie a multiple of 8 elements apart.

    All arrays are CuPy arrays on one device, or of a type that `register_matmul` knows. The work is
    queued on CuPy's current stream, each of which has a workspace of its own. Several threads may
    call this at once, each with a stream of its own. Raises KernelError for shapes, types and
    layouts that do not fit together or that cuBLASLt does not support, with its status; DeviceError
    if cuBLASLt is missing.
    """
    if out.size == 0:
        return
    registered = _matmuls.get(type(out))
    if registered is not None:
        registered(
            out, a, b, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate,
            bias=bias, epilogue=epilogue, aux=aux, tf32=tf32,
        )  # fmt: skip
        return
    out_memory, a_address, b_address = out.data, a.data.ptr, b.data.ptr
    device_id, out_address = out_memory.device_id, out_memory.ptr
    key = (
        signature(out), signature(a), signature(b),
        None if bias is None else signature(bias), None if aux is None else signature(aux),
        transpose_a, transpose_b, accumulate, epilogue, tf32,
    )  # fmt: skip
    context = _context(device_id)
    plan = context.plans.get(key)
    if plan is None:
        plan = context.plans[key] = context.choose(
            key, lambda plan: context.run(plan, out_address, a_address, b_address, bias, aux)
        )
    context.run(plan, out_address, a_address, b_address, bias, aux)


@dataclass(frozen=True)
class _Plan:
    """What is passed to cublasLtMatmul for one kind of product, without the addresses."""

    problem: Problem
    operation: int
    layouts: tuple[int, int, int]
    algorithm: cublaslt.HeuristicResult
    algorithm_address: int
    beta_address: int
    set_bias: Callable[[int], None] | None
    set_aux: Callable[[int], None] | None


class _Context:
    """cuBLASLt on one device: handle, workspace, and the plans made so far."""

    def __init__(self, device_id: int) -> None:
        import cupy

        self.library = cublaslt.load_cublaslt()
        self.device_id = device_id
        self.current_stream = cupy.cuda.get_current_stream
        with cupy.cuda.Device(device_id):
            self.handle = self.library.create()
            properties = cupy.cuda.runtime.getDeviceProperties(device_id)
        # Straight from cudaMalloc: a pool could round the size up, and the memory plan counts
        # exactly WORKSPACE_BYTES.
        self._new_workspace: Callable[[], Any] = lambda: cupy.cuda.Memory(WORKSPACE_BYTES)
        self._workspaces: dict[int, Any] = {}
        self._lock = threading.Lock()
        self.machine = f"{properties['name'].decode()}, cuBLASLt {self.library.version()}"
        self.plans: dict[tuple[Any, ...], _Plan] = {}
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self._one_address = ctypes.addressof(self._one)

    def choose(self, key: tuple[Any, ...], run: Callable[[_Plan], None]) -> _Plan:
        """The plan with the algorithm that was chosen for this kind of product."""
        candidates = self.candidates(key)
        problem = candidates[0].problem
        choice = choose_algorithm(
            f"{self.machine}: {problem.identity()}",
            [lambda plan=plan: run(plan) for plan in candidates],  # type: ignore[misc]
            problem.flops,
            self.current_stream(self.device_id),
        )
        # The file may have been edited, or written when cuBLASLt proposed more algorithms.
        return candidates[min(choice, len(candidates) - 1)]

    def candidates(self, key: tuple[Any, ...]) -> list[_Plan]:
        """Describe a product, once for each algorithm of the heuristics, the best first."""
        problem, library = problem_of(key), self.library
        operation = library.operation(
            problem.compute, problem.transpose_A, problem.transpose_B, problem.epilogue
        )
        # The heuristics read the alignment of bias and aux off their addresses. A plan serves many
        # addresses, so the alignment itself, a power of two, is set as the address here; `run` sets
        # the real one.
        set_bias = set_aux = None
        if problem.bias_alignment is not None:
            set_bias = library.bias_setter(operation, problem.bias_alignment)
        if problem.aux_alignment is not None:
            set_aux = library.aux_setter(operation, problem.aux_alignment)
            library.set_aux_leading(operation, problem.aux_leading)
        A, B, D = problem.A, problem.B, problem.D
        layouts = (_layout(library, A), _layout(library, B), _layout(library, D))
        algorithms = library.algorithms(
            self.handle,
            operation,
            layouts,
            alignments=(A.alignment, B.alignment, D.alignment),
            workspace_bytes=WORKSPACE_BYTES,
            # Partial sums of a split K must not be rounded to bfloat16.
            reduction_schemes=cublaslt.REDUCE_IN_COMPUTE_TYPE if D.type_code == "H" else None,
            count=MAX_CANDIDATES,
            what=problem.describe(),
        )
        beta = self._one if problem.accumulate else self._zero
        return [
            _Plan(
                problem=problem,
                operation=operation,
                layouts=layouts,
                algorithm=algorithm,
                algorithm_address=ctypes.addressof(algorithm),
                beta_address=ctypes.addressof(beta),
                set_bias=set_bias,
                set_aux=set_aux,
            )
            for algorithm in algorithms
        ]

    def run(
        self, plan: _Plan, out: int, a: int, b: int, bias: Array | None, aux: Array | None
    ) -> None:
        """Queue the product on CuPy's current stream for this device; out, a, b are addresses."""
        stream = self.current_stream(self.device_id)
        workspace = self._workspaces.get(stream.ptr) or self._make_workspace(stream)
        A_layout, B_layout, D_layout = plan.layouts
        with self._lock:  # the addresses of bias and aux lie in the plan, which threads share
            if bias is not None:
                assert plan.set_bias is not None
                plan.set_bias(bias.data.ptr)
            if aux is not None:
                assert plan.set_aux is not None
                plan.set_aux(aux.data.ptr)
            # Row-major a @ b is column-major b @ a: cuBLASLt's A is our b.
            status = self.library.matmul(
                self.handle, plan.operation, self._one_address, b, A_layout, a, B_layout,
                plan.beta_address, out, D_layout, out, D_layout, plan.algorithm_address,
                workspace.ptr, WORKSPACE_BYTES, stream.ptr,
            )  # fmt: skip
        if status:
            self.library.check(status, plan.problem.describe())

    def _make_workspace(self, stream: Any) -> Any:
        """Scratch memory for the products of one stream: those of two streams run at once."""
        workspace = self._workspaces[stream.ptr] = self._new_workspace()
        # CuPy keeps one object for a stream. When it goes, so does the workspace.
        weakref.finalize(stream, self._free_workspace, stream.ptr).atexit = False
        return workspace

    def _free_workspace(self, stream: int) -> None:
        self._workspaces.pop(stream, None)


def _layout(library: cublaslt.CublasLt, operand: Operand) -> int:
    return library.layout(_TYPES[operand.type_code], operand.rows, operand.cols, operand.leading)


@cache
def _context(device_id: int) -> _Context:
    return _Context(device_id)


@contextmanager
def measuring(run_folder: Path | None, *, keep: bool = True) -> Iterator[None]:
    """Inside, the algorithms of each new kind of product are measured, and the choice is saved.

    A measured product is computed many times into its output, so use this while buffers hold
    nothing yet. Without `run_folder` only the user's cache is read and written. Only one rank of a
    run may `keep` its choices: otherwise all ranks would write the same files at once.
    """
    _choices.update(_read(cache_file()))
    if run_folder is not None:
        _choices.update(_read(run_folder / PRODUCTS))  # the run's own choices win
    known = len(_choices)
    _here.is_measuring = True
    try:
        yield
    finally:
        _here.is_measuring = False
    if not keep:
        return
    if run_folder is not None and _read(run_folder / PRODUCTS) != _choices:
        _write(run_folder / PRODUCTS, dict(_choices))
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
    is_measuring = getattr(_here, "is_measuring", False)
    if identity not in _choices and is_measuring and len(candidates) > 1:
        repeats = max(1, min(MAX_REPEATS, int(LAUNCH_FLOPS / flops)))
        _choices[identity] = _fastest(candidates, repeats, stream)
    return _choices.get(identity, 0)


def cache_file() -> Path | None:
    """The user's cache: a file in the cache folder; None if there is none."""
    folder = cache_dir()
    return None if folder is None else folder / PRODUCTS


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
