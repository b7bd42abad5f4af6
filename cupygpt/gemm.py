"""Matrix products on the GPU: cuBLASLt with row-major arrays, descriptors cached by shape.

CuPy's own products refuse to run while a stream is captured; these run eagerly and captured. The
first call of a kind describes the product and takes the algorithm that cuBLASLt's heuristics put
first (under 100 μs); later calls look it up. Timing the candidates is faster for some shapes, but
then the bits of a run would depend on the timing. No call waits for the device, and none but the
first on a device allocates.

cuBLASLt thinks in column-major matrices: a row-major (M, N) array is the column-major matrix
(N, M), hence out = a b is computed as outᵀ = bᵀ aᵀ, with the operands exchanged.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from cupygpt import cublaslt
from cupygpt.errors import KernelError
from cupygpt.tensors import Array

WORKSPACE_BYTES = 32 << 20
"""Scratch memory per device: NVIDIA's advice for Hopper, ample for older GPUs."""

Epilogue = Literal["gelu", "dgelu"]

_TYPES = {"f": cublaslt.FLOAT32, "H": cublaslt.BFLOAT16}
_TYPE_NAMES = {"f": "float32", "H": "bfloat16"}
_BASE_ALIGNMENT = 256
_AUX_MULTIPLE = 8  # cuBLASLt's demand on the leading dimension of the GELU's input


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
    """out = f(op(a) @ op(b) + bias), where op transposes on demand; `accumulate` adds to out.

    Written: out (M, N); accumulated with `accumulate`. Read: op(a) (M, K), op(b) (K, N); bias (N,)
    or None. `epilogue` None: f is the identity. "gelu": f is the tanh form of GELU, and its input
    is also written to aux (M, N) unless that is None. "dgelu": out = (op(a) @ op(b)) times the
    derivative of GELU at aux (M, N), which is read; no bias. On an H200 the GELU epilogues pay in
    bfloat16 only: in TF32 they cost more than a GELU kernel of its own.

    float32 operands give a float32 result, in true float32 or, with `tf32`, with operands rounded
    to TF32. uint16 operands are bfloat16, summed in float32, for a float32 or bfloat16 result
    (`tf32` does not concern them). bias and aux have the type of out. The last axis must be
    contiguous; rows may lie apart, so row and column slices of a larger array will do. With an
    epilogue and aux, rows of aux must lie a multiple of 8 elements apart.

    All arrays are CuPy arrays on one device; the work is queued on CuPy's current stream. Products
    of one device share a workspace and cached descriptors: issue them from one thread, on one
    stream at a time. Raises KernelError for shapes, types and layouts that do not fit together or
    that cuBLASLt does not know, with its status; DeviceError where cuBLASLt is missing.
    """
    if out.size == 0:
        return
    out_memory, a_address, b_address = out.data, a.data.ptr, b.data.ptr
    device_id, out_address = out_memory.device_id, out_memory.ptr
    key = (
        _signature(out), _signature(a), _signature(b),
        None if bias is None else _signature(bias), None if aux is None else _signature(aux),
        transpose_a, transpose_b, accumulate, epilogue, tf32,
    )  # fmt: skip
    context = _context(device_id)
    plan = context.plans.get(key)
    if plan is None:
        plan = context.plans[key] = context.plan(key)
    context.run(plan, out_address, a_address, b_address, bias, aux)


_Signature = tuple[tuple[int, ...], tuple[int, ...], str, int, int]


def _signature(array: Array) -> _Signature:
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
    def of(cls, name: str, signature: _Signature) -> "Operand":
        """Raises KernelError where the array is not 2-D, or its rows are not contiguous."""
        shape, strides, type_code, alignment, _ = signature
        if len(shape) != 2:
            raise KernelError(f"{name} has shape {shape}: products take 2-D arrays.")
        if 0 in shape:
            raise KernelError(f"{name} has shape {shape}: a product cannot sum over nothing.")
        if type_code not in _TYPES:
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
    """One kind of product in cuBLASLt's terms: D (m, n) = op(A) (m, k) op(B) (k, n).

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
        """Length of the sums."""
        return self.A.rows if self.transpose_A else self.A.cols

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


def problem_of(key: tuple[Any, ...]) -> Problem:
    """Check that the arrays of a call fit together, and translate them for cuBLASLt.

    `key` is what `matmul` looks plans up by. Raises KernelError that names what does not fit.
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


def _check_bias(signature: _Signature, N: int, type_code: str) -> None:
    shape, strides, bias_type, _, _ = signature
    itemsize = 4 if type_code == "f" else 2
    if shape != (N,) or bias_type != type_code or (N > 1 and strides[0] != itemsize):
        raise KernelError(
            f"bias has shape {shape}, dtype '{bias_type}' and strides {strides}: "
            f"it must be contiguous, ({N},), and of the result's type."
        )


def _aux_operand(signature: _Signature, out: Operand, epilogue: Epilogue | None) -> Operand:
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


@dataclass(frozen=True)
class _Plan:
    """What is passed to cublasLtMatmul for one kind of product, beside the addresses."""

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
            # Straight from cudaMalloc: a pool could round it up, and the plan of the run counts it.
            self._workspace = cupy.cuda.Memory(WORKSPACE_BYTES)
        self.workspace_address = self._workspace.ptr
        self.plans: dict[tuple[Any, ...], _Plan] = {}
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self._one_address = ctypes.addressof(self._one)

    def plan(self, key: tuple[Any, ...], choice: int = 0) -> _Plan:
        """Describe a product and take the heuristics' algorithm number `choice`, best first."""
        problem, library = problem_of(key), self.library
        operation = library.operation(
            problem.compute, problem.transpose_A, problem.transpose_B, problem.epilogue
        )
        # The heuristics read the alignment of bias and aux off the addresses set here.
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
            count=choice + 1,
            what=problem.describe(),
        )
        algorithm = algorithms[min(choice, len(algorithms) - 1)]
        return _Plan(
            problem=problem,
            operation=operation,
            layouts=layouts,
            algorithm=algorithm,
            algorithm_address=ctypes.addressof(algorithm),
            beta_address=ctypes.addressof(self._one if problem.accumulate else self._zero),
            set_bias=set_bias,
            set_aux=set_aux,
        )

    def run(
        self, plan: _Plan, out: int, a: int, b: int, bias: Array | None, aux: Array | None
    ) -> None:
        """Queue the product on CuPy's current stream for this device; out, a, b are addresses."""
        if bias is not None:
            assert plan.set_bias is not None
            plan.set_bias(bias.data.ptr)
        if aux is not None:
            assert plan.set_aux is not None
            plan.set_aux(aux.data.ptr)
        A_layout, B_layout, D_layout = plan.layouts
        status = self.library.matmul(
            self.handle, plan.operation, self._one_address, b, A_layout, a, B_layout,
            plan.beta_address, out, D_layout, out, D_layout, plan.algorithm_address,
            self.workspace_address, WORKSPACE_BYTES, self.current_stream(self.device_id).ptr,
        )  # fmt: skip
        if status:
            self.library.check(status, plan.problem.describe())


def _layout(library: cublaslt.CublasLt, operand: Operand) -> int:
    return library.layout(_TYPES[operand.type_code], operand.rows, operand.cols, operand.leading)


@cache
def _context(device_id: int) -> _Context:
    return _Context(device_id)
