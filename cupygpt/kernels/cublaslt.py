"""cuBLASLt: how a product is described in its terms, and the part of its C interface in use.

Describe (`problem_of`). cuBLASLt's matrices are column-major. The memory of a row-major (M, N)
array is that of a column-major (N, M) matrix, its transpose. Therefore out = a b is computed as
outᵀ = bᵀ aᵀ, with the operands exchanged.

Call (`CublasLt`), through ctypes. The interface and the numbers are the same in CUDA 12 and 13.
Source: NVIDIA's cuBLAS documentation (the cuBLASLt API) and the header cublasLt.h.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from cupygpt.arrays import Array
from cupygpt.device.libraries import find_library
from cupygpt.errors import KernelError

FLOAT32, BFLOAT16 = 0, 14
"""cudaDataType of a matrix; bfloat16 is uint16 in Python."""

COMPUTE_FLOAT32, COMPUTE_TF32 = 68, 77
"""cublasComputeType_t: all in float32; or operands rounded to TF32 and sums in float32."""

EPILOGUE_DEFAULT, EPILOGUE_BIAS, EPILOGUE_GELU, EPILOGUE_DGELU, EPILOGUE_AUX = 1, 4, 32, 64, 128
"""cublasLtEpilogue_t is the sum of these flags, or DEFAULT alone."""

REDUCE_IN_COMPUTE_TYPE = 2
"""cublasLtReductionScheme_t: where K is split, partial sums are kept in float32, not bfloat16."""

_DESC_TRANSPOSE_A, _DESC_TRANSPOSE_B, _DESC_EPILOGUE = 3, 4, 7
_DESC_BIAS_POINTER, _DESC_AUX_POINTER, _DESC_AUX_LD = 8, 11, 12
_PREFERENCE_WORKSPACE_BYTES, _PREFERENCE_REDUCTION_SCHEMES = 1, 3
_PREFERENCE_FIRST_ALIGNMENT = 5  # of A, B, C and D, in this order

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
        extras = [f"epilogue {self.epilogue}"] if self.epilogue != EPILOGUE_DEFAULT else []
        if self.compute == COMPUTE_TF32:
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
        compute=(COMPUTE_TF32 if tf32 and a.type_code == "f" else COMPUTE_FLOAT32),
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
        return EPILOGUE_DGELU | EPILOGUE_AUX
    if epilogue == "gelu":
        flags = EPILOGUE_GELU
        flags |= EPILOGUE_BIAS if bias else 0
        return flags | (EPILOGUE_AUX if aux else 0)
    return EPILOGUE_BIAS if bias else EPILOGUE_DEFAULT


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm as cublasLtMatmul takes it, and its needs."""

    _fields_ = (
        ("algo", c_uint64 * 8),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class CublasLt:
    """The functions of one loaded library. A failure raises KernelError with its status by name."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        handle = pointer
        self.version = self._entry("GetVersion", result=c_size_t)
        """The library's version, such as 130100."""
        self._status_name = self._entry("GetStatusName", c_int, result=c_char_p)
        self._create = self._entry("Create", POINTER(handle))
        self._desc_create = self._entry("MatmulDescCreate", POINTER(handle), c_int, c_int)
        self._desc_set = self._entry("MatmulDescSetAttribute", handle, c_int, pointer, c_size_t)
        self._layout_create = self._entry(
            "MatrixLayoutCreate", POINTER(handle), c_int, c_uint64, c_uint64, c_int64
        )
        self._preference_create = self._entry("MatmulPreferenceCreate", POINTER(handle))
        self._preference_destroy = self._entry("MatmulPreferenceDestroy", handle)
        self._preference_set = self._entry(
            "MatmulPreferenceSetAttribute", handle, c_int, pointer, c_size_t
        )
        self._heuristic = self._entry(
            "MatmulAlgoGetHeuristic", *[handle] * 7, c_int, pointer, POINTER(c_int)
        )
        self.matmul = self._entry("Matmul", *[pointer] * 14, c_size_t, pointer)
        """cublasLtMatmul itself. The caller checks the status: a wrapper would cost time."""

    def _entry(self, name: str, *arguments: Any, result: Any = c_int) -> Callable[..., Any]:
        function = getattr(self._library, "cublasLt" + name)
        function.argtypes, function.restype = arguments, result
        return function  # type: ignore[no-any-return]

    def check(self, status: int, what: str) -> None:
        """Raise KernelError unless `status` is CUBLAS_STATUS_SUCCESS; `what` says what failed."""
        if status:
            raise KernelError(f"{what}: {self._status_name(status).decode()}.")

    def create(self) -> int:
        """A library handle for the current device. It is never destroyed."""
        handle = pointer()
        self.check(self._create(byref(handle)), "opening cuBLASLt")
        assert handle.value
        return handle.value

    def layout(self, dtype: int, rows: int, cols: int, leading: int) -> int:
        """Descriptor of a column-major matrix whose columns begin `leading` elements apart."""
        handle = pointer()
        status = self._layout_create(byref(handle), dtype, rows, cols, leading)
        self.check(status, f"describing a {rows} × {cols} matrix with leading dimension {leading}")
        assert handle.value
        return handle.value

    def operation(self, compute: int, transpose_a: bool, transpose_b: bool, epilogue: int) -> int:  # noqa: FBT001
        """Descriptor of a matrix product whose factors alpha and beta are float32 on the host."""
        handle = pointer()
        self.check(self._desc_create(byref(handle), compute, FLOAT32), "describing a product")
        assert handle.value
        for attribute, value in (
            (_DESC_TRANSPOSE_A, c_int(transpose_a)),
            (_DESC_TRANSPOSE_B, c_int(transpose_b)),
            (_DESC_EPILOGUE, c_uint32(epilogue)),
        ):
            self._set_operation(handle.value, attribute, value)
        return handle.value

    def bias_setter(self, operation: int, address: int) -> Callable[[int], None]:
        """A function that sets the address of the bias of `operation`.

        The bias has one element for each row of the column-major result. `address` is set at once:
        cuBLASLt reads the alignment of the bias from it when it proposes algorithms.
        """
        return self._address_setter(operation, _DESC_BIAS_POINTER, address)

    def aux_setter(self, operation: int, address: int) -> Callable[[int], None]:
        """As bias_setter, for the matrix that holds the input of the GELU."""
        return self._address_setter(operation, _DESC_AUX_POINTER, address)

    def set_aux_leading(self, operation: int, leading: int) -> None:
        """Set how many elements apart the columns of the GELU's input begin; a multiple of 8."""
        self._set_operation(operation, _DESC_AUX_LD, c_int64(leading))

    def _address_setter(
        self, operation: int, attribute: int, address: int
    ) -> Callable[[int], None]:
        slot = pointer(address)
        self._set_operation(operation, attribute, slot)
        # The function below is called for every product, so all but the address is prepared here.
        entry, slot_address, size = self._desc_set, ctypes.addressof(slot), ctypes.sizeof(slot)

        def set_address(address: int) -> None:
            slot.value = address
            self.check(entry(operation, attribute, slot_address, size), "setting an address")

        return set_address

    def _set_operation(self, operation: int, attribute: int, value: Any) -> None:
        status = self._desc_set(operation, attribute, byref(value), ctypes.sizeof(value))
        self.check(status, f"setting attribute {attribute} of a product to {value}")

    def algorithms(
        self,
        handle: int,
        operation: int,
        layouts: tuple[int, int, int],
        *,
        alignments: tuple[int, int, int],
        workspace_bytes: int,
        reduction_schemes: int | None,
        count: int,
        what: str,
    ) -> list[HeuristicResult]:
        """Up to `count` algorithms for D = A B + C with C = D, by cuBLASLt's ranking.

        `layouts` and `alignments` (in bytes) are those of A, B and D. `what` describes the product.
        Raises KernelError if cuBLASLt has no algorithm.
        """
        preference = pointer()
        self.check(self._preference_create(byref(preference)), what)
        try:
            a, b, d = alignments
            settings: list[tuple[int, Any]] = [
                (_PREFERENCE_WORKSPACE_BYTES, c_uint64(workspace_bytes))
            ]
            if reduction_schemes is not None:
                settings.append((_PREFERENCE_REDUCTION_SCHEMES, c_uint32(reduction_schemes)))
            for offset, alignment in enumerate((a, b, d, d)):
                settings.append((_PREFERENCE_FIRST_ALIGNMENT + offset, c_uint32(alignment)))
            for attribute, value in settings:
                size = ctypes.sizeof(value)
                self.check(self._preference_set(preference, attribute, byref(value), size), what)
            results, found = (HeuristicResult * count)(), c_int()
            a_layout, b_layout, d_layout = layouts
            status = self._heuristic(
                handle, operation, a_layout, b_layout, d_layout, d_layout,
                preference, count, byref(results), byref(found),
            )  # fmt: skip
        finally:
            self._preference_destroy(preference)
        self.check(status, what)
        usable = [result for result in results[: found.value] if result.state == 0]
        if not usable:
            raise KernelError(f"{what}: cuBLASLt knows no algorithm for it.")
        return usable


@cache
def load_cublaslt() -> CublasLt:
    """cuBLASLt, from the installed CUDA components.

    Raises DeviceError, which says what to install, if it is missing.
    """
    return CublasLt(find_library("cublasLt"))
