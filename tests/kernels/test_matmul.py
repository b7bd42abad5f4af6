"""Products on the GPU against float64; what needs no GPU is in test_cublaslt.py."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from support.gpu import require_cupy, require_gpu

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.errors import KernelError
from cupygpt.kernels import matmul as matmul_module
from cupygpt.kernels.matmul import matmul
from cupygpt.lab import oracle, tolerance

pytestmark = pytest.mark.gpu

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
        narrow = self.kind == "bf16" if result else self.kind.startswith("bf16")
        return require_cupy().asarray(to_bfloat16(values) if narrow else values.astype(np.float32))

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
    want = oracle.gelu_forward(want_aux)
    assert (np.abs(case.get(aux) - want_aux) <= limit).all()
    for got in (out, alone):  # GELU's slope is at most 1.13; its own error is the epilogue's tanh.
        error = np.abs(case.get(got) - want)
        assert (error <= 1.2 * limit + TANH_ERROR * np.abs(want_aux)).all(), error.max()


@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 8, 1), (33, 64, 40), (513, 3072, 768)])
def test_dgelu_epilogue(kind: str, M: int, N: int, K: int) -> None:
    case = Case(kind)
    dout, dout_ref = case.normal(M, K)
    weight, weight_ref = case.normal(K, N)
    aux, aux_ref = case.normal(M, N, result=True)
    out = case.put(np.full((M, N), np.nan), result=True)
    matmul(out, dout, weight, epilogue="dgelu", aux=aux, tf32=case.tf32)
    product = dout_ref @ weight_ref
    magnitude = np.abs(dout_ref) @ np.abs(weight_ref)
    want = oracle.gelu_backward(product, aux_ref)
    error = np.abs(case.get(out) - want)
    limit = 1.2 * case.limit(K, magnitude, product) + 4 * TANH_ERROR * np.abs(product)
    assert (error <= limit).all(), (error - limit).max()
    assert (case.get(aux) == aux_ref).all()


TANH_ERROR = 2.0**-10
"""The epilogue's tanh is the hardware's approximation (tanh.approx.f32: relative error 2**-11)."""


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


def test_a_known_kind_of_product_makes_no_new_plan() -> None:
    case = Case("fp32")
    plans = matmul_module._context(case.device.index).plans
    arrays = [case.put(np.ones((48, 48))) for _ in range(4)]
    matmul(arrays[0], arrays[1], arrays[2])
    before = len(plans)
    matmul(arrays[3], arrays[2], arrays[1])
    assert len(plans) == before
    matmul(arrays[3], arrays[2], arrays[1], transpose_a=True)
    assert len(plans) == before + 1


def test_a_product_that_fails_names_its_shape_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("fp32")
    a, _ = case.normal(16, 24)
    out = case.put(np.zeros((16, 16)))
    library = matmul_module._context(case.device.index).library
    monkeypatch.setattr(library, "matmul", lambda *arguments: 13)
    message = r"product out \(16, 16\) float32 = \(16, 24\) @ \(16, 24\)ᵀ float32: CUBLAS_STATUS_EX"
    with pytest.raises(KernelError, match=message):
        matmul(out, a, a, transpose_b=True)


def test_an_empty_result_is_left_alone() -> None:
    case = Case("fp32")
    matmul(case.put(np.zeros((0, 4))), case.put(np.zeros((0, 8))), case.put(np.zeros((8, 4))))
