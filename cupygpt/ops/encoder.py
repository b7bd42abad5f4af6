"""Token plus position embedding."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host, share
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch, ceil_div, pack_size

LEAST_COLUMNS = 32
"""Columns worth a thread of their own on the CPU."""
WARP, BLOCK_WARPS = 32, 8
FORWARD_ROWS = 2
"""Texts per block of encoder_forward; ROWS in encoder.cu."""
BACKWARD_COLUMNS, WINDOW = 128, 32
"""Of a warp in encoder_backward; COLUMNS and WINDOW in encoder.cu."""

_forward = Kernel(
    "encoder.cu",
    "encoder_forward",
    "out:floatX* tokens:i32* wte:floatX* wpe:floatX* B:i32 T:i32 C:i32",
)
_backward = Kernel(
    "encoder.cu",
    "encoder_backward",
    "dwte:f32* dwpe:f32* sums:f32* dout:floatX* tokens:i32* order:i32* B:i32 T:i32 C:i32",
)
_finish = Kernel(
    "encoder.cu",
    "encoder_backward_finish",
    "dwte:f32* sums:f32* tokens:i32* order:i32* N:i32 C:i32",
)


def encoder_forward(out: Array, tokens: Array, wte: Array, wpe: Array) -> None:
    """out[b, t] = wte[tokens[b, t]] + wpe[t].

    Written: out (B, T, C) floatX. Read: tokens (B, T) int32 in [0, V), wte (Vp, C), wpe (maxT, C)
    with maxT >= T. After llm.c train_gpt2.c, encoder_forward.
    """
    B, T, C = out.shape
    if on_host(out):
        np.take(wte, tokens, axis=0, out=out, mode="clip")  # "raise" would copy; ids are checked
        out += wpe[:T]
        return
    slices = ceil_div(C, WARP * pack_size(out))
    _forward(
        out,
        tokens,
        wte,
        wpe,
        B,
        T,
        C,
        launch=Launch(
            slices * ceil_div(B, FORWARD_ROWS) * ceil_div(T, BLOCK_WARPS), WARP * BLOCK_WARPS
        ),
    )


def encoder_backward(
    dwte: Array, dwpe: Array, dout: Array, tokens: Array, order: Array, sums: Array
) -> None:
    """dwte[tokens[b, t]] += dout[b, t] and dwpe[t] += dout[b, t], summed in a fixed order.

    Accumulated: dwte (Vp, C), dwpe (maxT, C) float32. Read: dout (B, T, C), tokens (B, T) int32,
    order (B * T,) int32 as `token_order` makes it: rows of one token become neighbours, so that
    they are added up in a fixed order without atomics. Scratch: sums, float32, at least
    ceil(B * T / 32) * C elements.
    """
    if on_host(dwte):
        _numpy_backward(dwte, dwpe, dout, tokens, order)
        return
    B, T, C = dout.shape
    slices, num_windows = ceil_div(C, BACKWARD_COLUMNS), ceil_div(B * T, WINDOW)
    assert sums.size >= num_windows * C, (sums.size, num_windows, C)
    position_blocks, window_blocks = ceil_div(T, BLOCK_WARPS), ceil_div(num_windows, BLOCK_WARPS)
    _backward(
        dwte,
        dwpe,
        sums,
        dout,
        tokens,
        order,
        B,
        T,
        C,
        launch=Launch(slices * (position_blocks + window_blocks), WARP * BLOCK_WARPS),
    )
    _finish(
        dwte,
        sums,
        tokens,
        order,
        B * T,
        C,
        launch=Launch(window_blocks, WARP * BLOCK_WARPS),
        like=dout,
    )


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
