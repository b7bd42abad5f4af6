"""Products of emulated arrays: NumPy stands in for the library that computes them on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.lab import oracle


def matmul(
    out: Any,
    a: Any,
    b: Any,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
    bias: Any = None,
    epilogue: str | None = None,
    aux: Any = None,
    tf32: bool = False,
) -> None:
    """The `matmul` of cupygpt.kernels.matmul for EmulatedArray, with the same contract.

    uint16 arrays are bfloat16, summed in float32 and rounded once. `tf32` rounds nothing here.
    """
    left, right = _values(a), _values(b)
    product = (left.T if transpose_a else left) @ (right.T if transpose_b else right)
    if bias is not None:
        product += _values(bias)
    if epilogue == "gelu":
        if aux is not None:
            _store(aux, product)
        product = oracle.gelu_forward(product)
    elif epilogue == "dgelu":
        product = oracle.gelu_backward(product, _values(aux))
    if accumulate:
        product += _values(out)
    _store(out, product)


def _values(array: Any) -> np.ndarray:
    plain = np.asarray(array)
    return from_bfloat16(plain) if plain.dtype == np.uint16 else plain


def _store(out: Any, values: np.ndarray) -> None:
    np.asarray(out)[...] = to_bfloat16(values) if out.dtype == np.uint16 else values
