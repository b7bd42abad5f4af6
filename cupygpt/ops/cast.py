"""Conversions between float32 and bfloat16 (stored as uint16)."""

import numpy as np

from cupygpt.arrays import Array, from_bfloat16, to_bfloat16
from cupygpt.device.cpu_threads import on_host
from cupygpt.errors import KernelError
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch, ceil_div

PACK = 8
THREADS = 256

_to_bfloat16 = Kernel("cast.cu", "to_bfloat16", "out:u16* inp:f32* num_packs:i64")
_to_float32 = Kernel("cast.cu", "to_float32", "out:f32* inp:u16* num_packs:i64")


def cast(out: Array, inp: Array) -> None:
    """out = inp in the other type, rounded to nearest, ties to even.

    Written: out float32 or bfloat16 (uint16). Read: inp, same shape, bfloat16 or float32. On a GPU
    the size must be a multiple of 8, or KernelError is raised.
    """
    to_bits = out.dtype == np.uint16
    if on_host(out):
        out[...] = to_bfloat16(inp) if to_bits else from_bfloat16(inp)
        return
    if out.size != inp.size or out.size % PACK:
        raise KernelError(
            f"cast of {inp.size} to {out.size} elements: equal multiples of {PACK} are needed."
        )
    packs = int(out.size) // PACK
    kernel = _to_bfloat16 if to_bits else _to_float32
    kernel(out, inp, packs, launch=Launch(ceil_div(packs, THREADS), THREADS))
