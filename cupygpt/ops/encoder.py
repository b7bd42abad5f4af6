"""Token plus position embedding."""

import numpy as np

from cupygpt.kernels import Kernel, ceil_div, num_lanes, rows_launch
from cupygpt.ops.host import for_blocks, on_host, share
from cupygpt.tensors import Array

LEAST_COLUMNS = 32
"""Columns worth a thread of their own on the CPU."""
FORWARD_ROWS = 4
"""Rows per thread; ROWS in encoder.cu."""
WPE_THREADS = 128
RUN_POSITIONS = 32
RUN_PACKS = 3 * 16
"""Sorted positions, and packs of columns, per block of wte_backward; its GROUPS and columns."""
RUN_THREADS = 512

_forward = Kernel(
    "encoder.cu",
    "encoder_forward",
    "out:floatX* tokens:i32* wte:floatX* wpe:floatX* N:i32 T:i32 C:i32",
)
_wpe_backward = Kernel("encoder.cu", "wpe_backward", "dwpe:f32* dout:floatX* B:i32 T:i32 C:i32")
_wte_backward = Kernel(
    "encoder.cu",
    "wte_backward",
    "dwte:f32* dout:floatX* tokens:i32* order:i32* N:i32 C:i32",
)


def encoder_forward(out: Array, tokens: Array, wte: Array, wpe: Array) -> None:
    """out[b, t] = wte[tokens[b, t]] + wpe[t].

    Written: out (B, T, C) floatX. Read: tokens (B, T) int32 in [0, V), wte (Vp, C), wpe (maxT, C)
    with maxT >= T. After llm.c train_gpt2.c, encoder_forward.
    """
    T, C = out.shape[1:]
    if on_host(out):
        np.take(wte, tokens, axis=0, out=out, mode="clip")  # "raise" would copy; ids are checked
        out += wpe[:T]
        return
    N = int(tokens.size)
    launch = rows_launch(ceil_div(N, FORWARD_ROWS), C // num_lanes(out))
    _forward(out, tokens, wte, wpe, N, T, C, **launch)


def token_order(tokens: np.ndarray) -> np.ndarray:
    """Positions (B * T,) int32 that sort the tokens: made on the host, for encoder_backward."""
    # Ids fit in 16 bits, for which NumPy sorts by radix: about a tenth of the time.
    order = np.argsort(tokens.astype(np.uint16), axis=None, kind="stable")
    return order.astype(np.int32)


def encoder_backward(dwte: Array, dwpe: Array, dout: Array, tokens: Array, order: Array) -> None:
    """dwte[tokens[b, t]] += dout[b, t] and dwpe[t] += dout[b, t], summed in a fixed order.

    Accumulated: dwte (Vp, C), dwpe (maxT, C) float32. Read: dout (B, T, C), tokens (B, T) int32,
    order (B * T,) int32 as `token_order` makes it: rows of one token become neighbours, so that
    they are added up in a fixed order without atomics.
    """
    if on_host(dwte):
        _numpy_backward(dwte, dwpe, dout, tokens, order)
        return
    B, T, C = dout.shape
    packs = C // num_lanes(dout)
    _wpe_backward(dwpe, dout, B, T, C, grid=ceil_div(T * packs, WPE_THREADS), block=WPE_THREADS)
    _wte_backward(
        dwte, dout, tokens, order, B * T, C,
        grid=ceil_div(B * T, RUN_POSITIONS) * ceil_div(packs, RUN_PACKS), block=RUN_THREADS,
    )  # fmt: skip


def _numpy_backward(
    dwte: np.ndarray, dwpe: np.ndarray, dout: np.ndarray, tokens: np.ndarray, order: np.ndarray
) -> None:
    T, C = dout.shape[1:]
    rows = dout.reshape(-1, C)
    sorted_tokens = tokens.ravel()[order]
    firsts = np.flatnonzero(np.diff(sorted_tokens, prepend=-1))
    used = sorted_tokens[firsts]

    def columns(start: int, stop: int) -> None:
        block = slice(start, stop)
        dwpe[:T, block] += np.add.reduce(dout[..., block], axis=0)
        dwte[used, block] += np.add.reduceat(rows[order, block], firsts, axis=0)

    for_blocks(columns, C, share(C, LEAST_COLUMNS))
