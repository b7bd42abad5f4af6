"""Token plus position embedding."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import for_blocks, on_host, share
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import (
    WARP,
    Launch,
    ceil_div,
    launch_per_pack,
    num_packs,
    pack_size,
)

LEAST_COLUMNS = 32
"""Fewest columns for a CPU thread: with fewer, reading short pieces of rows costs more than another
thread saves."""

BLOCK_WARPS = 8
FORWARD_SEQUENCES = 2
"""Sequences (rows of the batch) in which a warp of encoder_forward has the same position."""
BACKWARD_COLUMNS = 128
"""Columns of a warp in encoder_backward: four for each lane."""
WINDOW = 32
"""Entries of `order` that a warp has in encoder_backward: one for each lane."""

_DEFINES = {
    "WARPS": BLOCK_WARPS,
    "FORWARD_SEQUENCES": FORWARD_SEQUENCES,
    "BACKWARD_COLUMNS": BACKWARD_COLUMNS,
    "WINDOW": WINDOW,
}

_forward = Kernel(
    "encoder.cu",
    "encoder_forward",
    "out:floatX* tokens:i32* wte:floatX* wpe:floatX* B:i32 T:i32 C:i32",
)
_decode = Kernel(
    "encoder.cu",
    "encoder_decode",
    "out:floatX* tokens:i32* positions:i32* wte:floatX* wpe:floatX* C:i32 num_packs:i64",
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
        np.take(wte, tokens, axis=0, out=out, mode="clip")  # "raise" copies; ids are checked
        out += wpe[:T]
        return
    launch = forward_launch(B, T, C, pack_size(out))
    _forward(out, tokens, wte, wpe, B, T, C, launch=launch)


def encoder_decode(out: Array, tokens: Array, positions: Array, wte: Array, wpe: Array) -> None:
    """out[n] = wte[tokens[n]] + wpe[positions[n]], for tokens of several texts.

    Written: out (N, C) floatX. Read: tokens (N,) int32 in [0, V), positions (N,) int32 in
    [0, maxT), wte (Vp, C), wpe (maxT, C).
    """
    if on_host(out):
        np.take(wte, tokens, axis=0, out=out, mode="clip")  # "raise" copies; ids are checked
        out += wpe[positions]
        return
    packs = num_packs(out)
    launch = launch_per_pack(packs, _DEFINES)
    _decode(out, tokens, positions, wte, wpe, int(out.shape[1]), packs, launch=launch)


def encoder_backward(
    dwte: Array, dwpe: Array, dout: Array, tokens: Array, order: Array, sums: Array
) -> None:
    """dwte[tokens[b, t]] += dout[b, t] and dwpe[t] += dout[b, t], summed in a fixed order.

    Accumulated: dwte (Vp, C), dwpe (maxT, C) float32. Read: dout (B, T, C), tokens (B, T) int32,
    order (B * T,) int32 as `token_order` (data/loader.py) makes it: the row numbers, sorted by
    token. The sort is stable, so the rows of a token are added in a fixed order. Scratch: sums,
    float32, at least ceil(B * T / 32) * C elements.
    """
    if on_host(dwte):
        _numpy_backward(dwte, dwpe, dout, tokens, order)
        return
    B, T, C = dout.shape
    needed = ceil_div(B * T, WINDOW) * C
    assert sums.size >= needed, (sums.size, needed)
    launch, finish_launch = backward_launches(B, T, C)
    _backward(dwte, dwpe, sums, dout, tokens, order, B, T, C, launch=launch)
    _finish(dwte, sums, tokens, order, B * T, C, launch=finish_launch, like=dout)


def forward_launch(B: int, T: int, C: int, per_pack: int) -> Launch:
    """The launch of encoder_forward; `per_pack` elements make a pack."""
    slices = ceil_div(C, WARP * per_pack)
    blocks_of_slice = ceil_div(B, FORWARD_SEQUENCES) * ceil_div(T, BLOCK_WARPS)
    return Launch(slices * blocks_of_slice, WARP * BLOCK_WARPS, defines=_DEFINES)


def backward_launches(B: int, T: int, C: int) -> tuple[Launch, Launch]:
    """The launches of encoder_backward and encoder_backward_finish."""
    slices = ceil_div(C, BACKWARD_COLUMNS)
    position_blocks = ceil_div(T, BLOCK_WARPS)
    window_blocks = ceil_div(ceil_div(B * T, WINDOW), BLOCK_WARPS)
    return (
        Launch(slices * (position_blocks + window_blocks), WARP * BLOCK_WARPS, defines=_DEFINES),
        Launch(window_blocks, WARP * BLOCK_WARPS, defines=_DEFINES),
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
