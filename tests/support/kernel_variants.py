"""The constants with which each .cu file is compiled by tests that do not go through an op.

A file that is not listed takes none. Where constants decide over registers, one typical and one
extreme choice are listed.
"""

LM_HEAD = ("-DPAIR_COLUMNS=128", "-DROUND_COLUMNS=256", "-DROUND_PITCH=264")

DEFINES: dict[str, list[tuple[str, ...]]] = {
    "adamw.cu": [("-DMAX_CHANGES=16",)],
    "bias.cu": [("-DSUM_THREADS=256", "-DROWS_IN_FLIGHT=4")],
    "classifier.cu": [("-DMAX_THREADS=768",), ("-DMAX_THREADS=1024",)],
    "encoder.cu": [
        ("-DWARPS=8", "-DFORWARD_SEQUENCES=2", "-DBACKWARD_COLUMNS=128", "-DWINDOW=32"),
    ],
    "gelu.cu": [("-DSUM_THREADS=256", "-DROWS_IN_FLIGHT=4")],
    "attention/cuda_cores.cu": [
        ("-DHS=64", "-DROWS=4", "-DSTREAM=32"),
        ("-DHS=128", "-DROWS=2", "-DSTREAM=16"),
    ],
    "attention/mma_forward.cu": [("-DHS=64", "-DWARPS=4", "-DTILES=1", "-DKEYS=64")],
    "attention/mma_backward.cu": [
        (
            "-DHS=64",
            "-DWARPS=4",
            "-DDKDV_TILES=1",
            "-DDQ_TILES=1",
            "-DSTREAM=32",
            "-DDKDV_PARTS=1",
        )
    ],
    "attention/wgmma_forward.cu": [
        ("-DHS=64", "-DKEYS=64", "-DSTAGES=3", "-DBLOCKS=4"),
        ("-DHS=128", "-DKEYS=64", "-DSTAGES=3", "-DBLOCKS=2"),
    ],
    "attention/wgmma_backward.cu": [
        ("-DHS=64", "-DSTAGES=2", "-DDKDV_BLOCKS=3", "-DDQ_BLOCKS=4"),
        ("-DHS=128", "-DSTAGES=2", "-DDKDV_BLOCKS=2", "-DDQ_BLOCKS=2"),
    ],
    "lm_head.cu": [
        (*LM_HEAD, "-DC=128", "-DGROUPS=3", "-DSTAGES=3"),
        (*LM_HEAD, "-DC=64", "-DGROUPS=3", "-DSTAGES=3"),
        (*LM_HEAD, "-DC=128", "-DGROUPS=4", "-DSTAGES=3"),
    ],
    "layernorm.cu": [
        ("-DWARPS_PER_ROW=1", "-DPACKS_PER_THREAD=3"),
        ("-DWARPS_PER_ROW=1", "-DPACKS_PER_THREAD=8"),
        ("-DWARPS_PER_ROW=4", "-DPACKS_PER_THREAD=4"),
    ],
    "layernorm_backward.cu": [
        ("-DTHREADS_PER_ROW=96", "-DROWS_PER_PASS=8", "-DPACKS_PER_THREAD=1", "-DSTAGES=2"),
        ("-DTHREADS_PER_ROW=224", "-DROWS_PER_PASS=4", "-DPACKS_PER_THREAD=1", "-DSTAGES=2"),
        ("-DTHREADS_PER_ROW=256", "-DROWS_PER_PASS=1", "-DPACKS_PER_THREAD=2", "-DSTAGES=0"),
    ],
}

FLOATX = ("float", "__nv_bfloat16")


def is_for_hopper(file: str) -> bool:
    """Whether a .cu file is written for sm_90a and bf16 only."""
    return "wgmma" in file or file == "lm_head.cu"


def option_sets(file: str) -> list[tuple[str, ...]]:
    """All combinations of floatX and constants for a .cu file, as compiler options."""
    types = FLOATX[1:] if is_for_hopper(file) else FLOATX
    return [
        (f"-DfloatX={floatX}", *defines) for floatX in types for defines in DEFINES.get(file, [()])
    ]
