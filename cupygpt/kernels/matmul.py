"""Matrix products on the GPU: cuBLASLt with row-major arrays, descriptors cached by shape.

CuPy's own products refuse to run while a stream is captured; these run eagerly and captured. The
first call of a kind makes a plan: it creates the product's cuBLASLt descriptors (under 100 μs), and
takes the algorithm that was measured to be the fastest (matmul_plan.py); without a measurement,
the first one that cuBLASLt proposes. Later calls look the plan up. No call outside `measuring`
waits for the device, and only the first call on a stream allocates memory.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from cupygpt.arrays import Array
from cupygpt.kernels import cublaslt
from cupygpt.kernels.matmul_plan import (
    Epilogue,
    Operand,
    Problem,
    choose_algorithm,
    problem_of,
    signature,
)

WORKSPACE_BYTES = 32 << 20
"""Scratch memory per stream: NVIDIA's advice for Hopper, ample for older GPUs."""

MAX_CANDIDATES = 16
"""Algorithms that the heuristics are asked for; for most products they propose about 8."""

_TYPES = {"f": cublaslt.FLOAT32, "H": cublaslt.BFLOAT16}

Matmul = Callable[..., None]
"""A function with the parameters of `matmul`."""

_matmuls: dict[type, Matmul] = {}


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
