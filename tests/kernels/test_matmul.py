"""Products on the GPU against float64, and what of them can be checked without one."""

import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
from support import tolerance
from support.gpu import require_gpu

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.errors import DeviceError, KernelError
from cupygpt.kernels import cublaslt
from cupygpt.kernels import matmul as gemm
from cupygpt.kernels.matmul import matmul
from cupygpt.kernels.matmul_problem import problem_of

# (M, N, K): one element, K = 1, odd everything, N = 7, exact tiles, many tiles, a long sum.
SHAPES = [
    (1, 1, 1),
    (5, 9, 1),
    (33, 65, 17),
    (64, 7, 96),
    (256, 128, 64),
    (1023, 515, 129),
    (40, 24, 8192),
]
KINDS = ["fp32", "tf32", "bf16", "bf16->fp32"]


class Case:
    """One product: inputs as stored, float64 inputs, and the error each element may have."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.kind = kind
        self.device = require_gpu()
        if kind != "fp32" and self.device.compute_capability < (8, 0):
            pytest.skip("TF32 and bfloat16 need compute capability 8.0")
        self.rng = np.random.default_rng(seed)
        self.tf32 = kind == "tf32"

    def put(self, values: np.ndarray, *, result: bool = False) -> Any:
        """The array on the GPU, in the type of the operands or of the result."""
        import cupy

        narrow = self.kind == "bf16" if result else self.kind.startswith("bf16")
        return cupy.asarray(to_bfloat16(values) if narrow else values.astype(np.float32))

    def get(self, array: Any) -> np.ndarray:
        host = self.device.download(array)
        return (from_bfloat16(host) if host.dtype == np.uint16 else host).astype(np.float64)

    def normal(self, *shape: int, result: bool = False) -> tuple[Any, np.ndarray]:
        """Random numbers on the GPU, and the same (after rounding) in float64."""
        array = self.put(self.rng.standard_normal(shape), result=result)
        return array, self.get(array)

    def limit(
        self, K: int, magnitude: np.ndarray, product: np.ndarray, addend: Any = 0.0
    ) -> np.ndarray:
        """Error that rounding explains; `magnitude` is the sum of the products' absolute values.

        Tensor cores cut sums off: four times the terms. A bfloat16 result may be rounded before
        `addend` is added, and again after.
        """
        return tolerance.limit(
            "bfloat16" if self.kind == "bf16" else "float32",
            4 * K,
            np.abs(product) + np.abs(addend),
            summed=magnitude,
            relative=tolerance.TF32_PRODUCT if self.tf32 else 0.0,
        )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_every_transpose_with_and_without_accumulation(kind: str, M: int, N: int, K: int) -> None:
    case = Case(kind)
    for transpose_a, transpose_b, accumulate in itertools.product([False, True], repeat=3):
        a, a_ref = case.normal(*((K, M) if transpose_a else (M, K)))
        b, b_ref = case.normal(*((N, K) if transpose_b else (K, N)))
        start = np.full((M, N), 3.0 if accumulate else np.nan)
        out = case.put(start, result=True)
        matmul(
            out, a, b,
            transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate,
            tf32=case.tf32,
        )  # fmt: skip
        a_ref, b_ref = a_ref.T if transpose_a else a_ref, b_ref.T if transpose_b else b_ref
        start = start if accumulate else np.zeros((M, N))
        product = a_ref @ b_ref
        limit = case.limit(K, np.abs(a_ref) @ np.abs(b_ref), product, start)
        error = np.abs(case.get(out) - (product + start))
        assert (error <= limit).all(), (transpose_a, transpose_b, accumulate, (error - limit).max())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_bias(kind: str, M: int, N: int, K: int) -> None:
    case = Case(kind)
    a, a_ref = case.normal(M, K)
    weight, weight_ref = case.normal(N, K)
    bias, bias_ref = case.normal(N, result=True)
    out = case.put(np.full((M, N), np.nan), result=True)
    matmul(out, a, weight, transpose_b=True, bias=bias, tf32=case.tf32)
    product = a_ref @ weight_ref.T
    limit = case.limit(K, np.abs(a_ref) @ np.abs(weight_ref.T), product, bias_ref)
    error = np.abs(case.get(out) - (product + bias_ref))
    assert (error <= limit).all(), (error - limit).max()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 8, 1), (33, 64, 40), (513, 3072, 768)])
def test_gelu_epilogue_keeps_its_input(kind: str, M: int, N: int, K: int) -> None:
    case = Case(kind)
    a, a_ref = case.normal(M, K)
    weight, weight_ref = case.normal(N, K)
    weight, weight_ref = case.put(weight_ref / math.sqrt(K)), None
    weight_ref = case.get(weight)
    bias, bias_ref = case.normal(N, result=True)
    out, aux, alone = (case.put(np.full((M, N), np.nan), result=True) for _ in range(3))
    options: dict[str, Any] = {"transpose_b": True, "bias": bias, "tf32": case.tf32}
    matmul(out, a, weight, epilogue="gelu", aux=aux, **options)
    matmul(alone, a, weight, epilogue="gelu", **options)
    product = a_ref @ weight_ref.T
    limit = case.limit(K, np.abs(a_ref) @ np.abs(weight_ref.T), product, bias_ref)
    want_aux = product + bias_ref
    want = gelu(want_aux)
    assert (np.abs(case.get(aux) - want_aux) <= limit).all()
    for got in (out, alone):  # GELU's slope is at most 1.13; its own error is the epilogue's tanh.
        error = np.abs(case.get(got) - want)
        assert (error <= 1.2 * limit + TANH_ERROR * np.abs(want_aux)).all(), error.max()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 8, 1), (33, 64, 40), (513, 3072, 768)])
def test_dgelu_epilogue(kind: str, M: int, N: int, K: int) -> None:
    case = Case(kind)
    dout, dout_ref = case.normal(M, K)
    weight, weight_ref = case.normal(K, N)
    aux, aux_ref = case.normal(M, N, result=True)
    out = case.put(np.full((M, N), np.nan), result=True)
    matmul(out, dout, weight, epilogue="dgelu", aux=aux, tf32=case.tf32)
    product, slope = dout_ref @ weight_ref, gelu_slope(aux_ref)
    magnitude = np.abs(dout_ref) @ np.abs(weight_ref)
    want = product * slope
    error = np.abs(case.get(out) - want)
    limit = 1.2 * case.limit(K, magnitude, product) + 4 * TANH_ERROR * np.abs(product)
    assert (error <= limit).all(), (error - limit).max()
    assert (case.get(aux) == aux_ref).all()


TANH_ERROR = 2.0**-10
"""The epilogue's tanh is the hardware's approximation (tanh.approx.f32: relative error 2**-11)."""


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    scale = math.sqrt(2 / math.pi)
    t = np.tanh(scale * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x * x)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
def test_slices_of_larger_arrays(kind: str) -> None:
    case = Case(kind)
    a_all, a_ref = case.normal(70, 37)
    b_all, b_ref = case.normal(41, 53)
    out_all = case.put(np.full((80, 61), 7.0), result=True)
    a, b, out = a_all[3:36, 5:22], b_all[1:18, 2:51], out_all[7:40, 9:58]
    matmul(out, a, b, tf32=case.tf32)
    want = a_ref[3:36, 5:22] @ b_ref[1:18, 2:51]
    magnitude = np.abs(a_ref[3:36, 5:22]) @ np.abs(b_ref[1:18, 2:51])
    got = case.get(out_all)
    assert (np.abs(got[7:40, 9:58] - want) <= case.limit(17, magnitude, want)).all()
    got[7:40, 9:58] = 7.0
    assert (got == 7.0).all(), "elements outside the slice were written"


@pytest.mark.gpu
def test_tf32_is_used_when_asked_for_and_only_then() -> None:
    case = Case("tf32")
    a, a_ref = case.normal(256, 512)
    b, b_ref = case.normal(512, 256)
    errors = []
    for tf32 in (False, True):
        out = case.put(np.full((256, 256), np.nan))
        matmul(out, a, b, tf32=tf32)
        errors.append(np.abs(case.get(out) - a_ref @ b_ref).max())
    assert errors[0] < 1e-4 < 1e-3 < errors[1] < 0.2, errors


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_captured_products_follow_their_inputs(kind: str) -> None:
    case = Case(kind)
    a, a_ref = case.normal(72, 56)  # A shape of no other test: its plan is made under capture.
    weight, weight_ref = case.normal(24, 56)
    bias, bias_ref = case.normal(24, result=True)
    out = case.put(np.full((72, 24), np.nan), result=True)
    graph = case.device.capture(
        lambda: matmul(out, a, weight, transpose_b=True, bias=bias, tf32=case.tf32)
    )
    assert np.isnan(case.get(out)).all(), "capturing ran the product"
    for factor in (1.0, -2.0):
        a[...] = case.put(factor * a_ref)
        graph.launch()
        product = factor * a_ref @ weight_ref.T
        magnitude = np.abs(factor * a_ref) @ np.abs(weight_ref.T)
        limit = case.limit(56, magnitude, product, bias_ref)
        assert (np.abs(case.get(out) - (product + bias_ref)) <= limit).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_repeats_bit_for_bit(kind: str) -> None:
    case = Case(kind)
    a, _ = case.normal(8192, 128)
    b, _ = case.normal(8192, 96)
    results = []
    for _ in range(5):  # A long sum with a small result: the shape that invites splitting K.
        out = case.put(np.zeros((128, 96)), result=True)
        matmul(out, a, b, transpose_a=True, accumulate=True, tf32=case.tf32)
        results.append(case.get(out))
    assert all((result == results[0]).all() for result in results)


@pytest.mark.gpu
def test_a_known_kind_of_product_makes_no_new_plan() -> None:
    case = Case("fp32")
    plans = gemm._context(case.device.index).plans
    arrays = [case.put(np.ones((48, 48))) for _ in range(4)]
    matmul(arrays[0], arrays[1], arrays[2])
    before = len(plans)
    matmul(arrays[3], arrays[2], arrays[1])
    assert len(plans) == before
    matmul(arrays[3], arrays[2], arrays[1], transpose_a=True)
    assert len(plans) == before + 1


@pytest.mark.gpu
def test_a_product_that_fails_names_its_shape_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("fp32")
    a, _ = case.normal(16, 24)
    out = case.put(np.zeros((16, 16)))
    library = gemm._context(case.device.index).library
    monkeypatch.setattr(library, "matmul", lambda *arguments: 13)
    message = r"product out \(16, 16\) float32 = \(16, 24\) @ \(16, 24\)ᵀ float32: CUBLAS_STATUS_EX"
    with pytest.raises(KernelError, match=message):
        matmul(out, a, a, transpose_b=True)


@pytest.mark.gpu
def test_empty_result_is_nothing_to_do() -> None:
    case = Case("fp32")
    matmul(case.put(np.zeros((0, 4))), case.put(np.zeros((0, 8))), case.put(np.zeros((8, 4))))


def key(
    out: tuple[int, ...],
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    types: str = "fff",
    bias: Any = None,
    aux: Any = None,
    flags: tuple[Any, ...] = (False, False, False, None, False),
    strides: dict[str, tuple[int, ...]] | None = None,
    devices: tuple[int, ...] = (0, 0, 0),
) -> tuple[Any, ...]:
    """What `matmul` looks plans up by, for contiguous arrays unless `strides` says otherwise."""
    strides = strides or {}
    signatures = []
    for name, shape, dtype, device in zip("oab", (out, a, b), types, devices, strict=True):
        own = strides.get(name) or np.empty(shape, dtype).strides
        signatures.append((shape, own, dtype, 256, device))
    return (*signatures, bias, aux, *flags)


def test_row_major_becomes_column_major_with_the_operands_exchanged() -> None:
    problem = problem_of(key((5, 3), (5, 2), (2, 3)))
    assert (problem.A.rows, problem.A.cols, problem.A.leading) == (3, 2, 3)  # b
    assert (problem.B.rows, problem.B.cols, problem.B.leading) == (2, 5, 2)  # a
    assert (problem.D.rows, problem.D.cols, problem.D.leading) == (3, 5, 3)
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (False, False, 2)


def test_transposes_are_exchanged_too() -> None:
    problem = problem_of(key((5, 3), (5, 2), (3, 2), flags=(False, True, False, None, False)))
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (True, False, 2)
    problem = problem_of(key((5, 3), (2, 5), (2, 3), flags=(True, False, False, None, False)))
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (False, True, 2)


def test_rows_may_lie_apart() -> None:
    problem = problem_of(key((5, 3), (5, 2), (2, 3), strides={"a": (44, 4)}))
    assert problem.B.leading == 11


def test_strides_of_single_rows_and_columns_do_not_matter() -> None:
    problem = problem_of(key((1, 3), (1, 1), (1, 3), strides={"a": (400, 36), "b": (8, 4)}))
    assert (problem.B.leading, problem.A.leading) == (1, 3)


def test_tf32_concerns_float32_only() -> None:
    flags = (False, False, False, None, True)
    shapes = ((4, 4), (4, 4), (4, 4))
    assert problem_of(key(*shapes, flags=flags)).compute == cublaslt.COMPUTE_TF32
    assert problem_of(key(*shapes)).compute == cublaslt.COMPUTE_FLOAT32
    assert problem_of(key(*shapes, types="HHH", flags=flags)).compute == cublaslt.COMPUTE_FLOAT32


def test_epilogues() -> None:
    shapes = ((4, 8), (4, 4), (4, 8))
    bias, aux = ((8,), (4,), "f", 16, 0), ((4, 8), (64, 4), "f", 256, 0)
    gelu_flags = (False, False, False, "gelu", False)
    dgelu_flags = (False, False, False, "dgelu", False)
    assert problem_of(key(*shapes)).epilogue == 1
    assert problem_of(key(*shapes, bias=bias)).epilogue == 4
    assert problem_of(key(*shapes, flags=gelu_flags)).epilogue == 32
    problem = problem_of(key(*shapes, bias=bias, aux=aux, flags=gelu_flags))
    assert (problem.epilogue, problem.bias_alignment, problem.aux_leading) == (164, 16, 16)
    assert problem_of(key(*shapes, aux=aux, flags=dgelu_flags)).epilogue == 192


WRONG = {
    "inner lengths": (key((5, 3), (5, 2), (4, 3)), r"out \(5, 3\) from a \(5, 2\) @ b \(4, 3\)"),
    "result": (key((3, 5), (5, 2), (2, 3)), "shapes do not fit"),
    "empty sum": (key((5, 3), (5, 0), (0, 3)), r"a has shape \(5, 0\): .* nothing"),
    "1-D": (key((5, 3), (10,), (2, 3)), r"a has shape \(10,\): products take 2-D"),
    "float64": (key((5, 3), (5, 2), (2, 3), types="fdf"), "a has dtype 'd'"),
    "mixed": (key((5, 3), (5, 2), (2, 3), types="ffH"), "float32 from float32 @ bfloat16"),
    "narrowed": (key((5, 3), (5, 2), (2, 3), types="Hff"), "bfloat16 from float32 @ float32"),
    "transposed view": (
        key((5, 3), (5, 2), (2, 3), strides={"a": (4, 20)}),
        r"a \(5, 2\) has strides \(4, 20\) bytes: its rows must be contiguous",
    ),
    "overlapping rows": (key((5, 3), (5, 2), (2, 3), strides={"a": (4, 4)}), "must not overlap"),
    "reversed rows": (key((5, 3), (5, 2), (2, 3), strides={"a": (-8, 4)}), "must not overlap"),
    "two GPUs": (key((5, 3), (5, 2), (2, 3), devices=(0, 1, 0)), r"different GPUs: \[0, 1\]"),
    "bias length": (key((5, 3), (5, 2), (2, 3), bias=((5,), (4,), "f", 256, 0)), r"\(3,\)"),
    "bias type": (key((5, 3), (5, 2), (2, 3), bias=((3,), (2,), "H", 256, 0)), "result's type"),
    "bias stride": (key((5, 3), (5, 2), (2, 3), bias=((3,), (8,), "f", 256, 0)), "contiguous"),
    "aux alone": (key((4, 8), (4, 4), (4, 8), aux=((4, 8), (32, 4), "f", 256, 0)), "epilogue"),
    "aux shape": (
        key(
            (4, 8), (4, 4), (4, 8),
            aux=((8, 4), (16, 4), "f", 256, 0), flags=(False, False, False, "gelu", False),
        ),
        "shape of out",
    ),
    "aux rows": (
        key(
            (4, 6), (4, 4), (4, 6),
            aux=((4, 6), (24, 4), "f", 256, 0), flags=(False, False, False, "gelu", False),
        ),
        "6 elements from row to row.*multiple of 8",
    ),
    "dgelu without aux": (
        key((4, 8), (4, 4), (4, 8), flags=(False, False, False, "dgelu", False)), "takes aux",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str) -> None:
    arguments, message = WRONG[name]
    with pytest.raises(KernelError, match=message):
        problem_of(arguments)


def test_description_reads_as_the_caller_wrote_it() -> None:
    problem = problem_of(key((5, 3), (2, 5), (2, 3), flags=(True, False, True, None, True)))
    assert problem.describe() == "product out (5, 3) float32 += (2, 5)ᵀ @ (2, 3) float32, TF32"


def test_missing_pathfinder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(DeviceError, match=r"cuda-pathfinder is missing.*cupygpt\[cuda12\]"):
        cublaslt.find_library("cublasLt")


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="no CUDA components installed")

    def missing(name: str) -> None:
        raise pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(DeviceError, match=r"library nvrtc was not found: pip install"):
        cublaslt.find_library("nvrtc")


@pytest.fixture
def library() -> cublaslt.CublasLt:
    pytest.importorskip("cuda.pathfinder", reason="no CUDA components installed")
    try:
        return cublaslt.load_cublaslt()
    except DeviceError as error:
        pytest.skip(str(error))


def test_status_codes_have_names(library: cublaslt.CublasLt) -> None:
    library.check(0, "nothing")
    with pytest.raises(KernelError, match=r"some product: CUBLAS_STATUS_NOT_SUPPORTED\."):
        library.check(15, "some product")


@pytest.mark.parametrize(
    ("status", "message"),
    [(15, "some product: CUBLAS_STATUS_NOT_SUPPORTED"), (0, "cuBLASLt knows no algorithm")],
)
def test_no_algorithm_names_the_product(
    library: cublaslt.CublasLt,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(library, "_heuristic", lambda *arguments: status)
    with pytest.raises(KernelError, match=message):
        library.algorithms(
            0, 0, (0, 0, 0),
            alignments=(4, 4, 4), workspace_bytes=0, reduction_schemes=2, count=1,
            what="some product",
        )  # fmt: skip
