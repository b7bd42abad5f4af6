"""Round float32 to bfloat16, which is stored as uint16."""

from cupygpt.arrays import Array, to_bfloat16
from cupygpt.device.cpu_threads import on_host
from cupygpt.errors import KernelError
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import launch_per_pack

PACK = 8
"""Elements of a thread of the kernel: one pack of bfloat16."""

_to_bfloat16 = Kernel("cast.cu", "to_bfloat16", "out:u16* inp:f32* num_packs:i64")


def cast_to_bfloat16(out: Array, inp: Array) -> None:
    """out = inp, rounded to nearest, ties to even.

    Written: out bfloat16 (uint16). Read: inp float32, same shape. Raises KernelError on a GPU if
    the size is not a multiple of 8.
    """
    if on_host(out):
        out[...] = to_bfloat16(inp)
        return
    if out.size != inp.size or out.size % PACK:
        raise KernelError(
            f"cast of {inp.size} to {out.size} elements: equal multiples of {PACK} are needed."
        )
    packs = int(out.size) // PACK
    _to_bfloat16(out, inp, packs, launch=launch_per_pack(packs))
