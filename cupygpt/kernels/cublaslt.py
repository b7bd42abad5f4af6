"""The part of cuBLASLt's C interface that matmul.py calls, through ctypes.

The interface and the numbers are the same in CUDA 12 and 13. Source: NVIDIA's cuBLAS
documentation (the cuBLASLt API) and the header cublasLt.h.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from functools import cache
from typing import Any

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
