"""What runs launch compiles for every supported GPU, within its limits of registers and spills.

No GPU is needed: NVRTC compiles machine code for any architecture, and the log of its assembler,
ptxas, holds the figures.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from kernels.nvrtc import CUDA_DIR, Nvrtc
from support.launched_variants import (
    ALL_RUNS,
    NEVER_LAUNCHED,
    TRAINER_FILES,
    USUAL_RUNS,
    Run,
    variants_of,
)
from support.stand_in_gpu import CAPABILITIES

from cupygpt.errors import DeviceError
from cupygpt.kernels.load import Variant
from cupygpt.kernels.ptxas_log import Usage, usages

GENERATIONS = ("75", "80", "90", "120")
"""One GPU of each generation of registers and instructions."""

FIRST_GENERATIONS = ("75", "90")
"""Those without and with the kernels of Hopper: to compile for all takes two minutes."""


@dataclass(frozen=True)
class Limit:
    """The most that ptxas may report for a kernel, over all GPUs and variants."""

    registers: int
    spill_bytes: int = 0


LIMITS_OF = (12, 9)
"""The version of NVRTC that the limits hold for; others share registers out in other ways."""

DEFAULT_LIMIT = Limit(registers=128)
# Kernels that need more, or all variants of one with a constant of that value or on that GPU; with
# the reason.
LIMITS: dict[str, Limit] = {
    # A warp keeps its rows of queries, scores and outputs in registers; what spills is addresses,
    # outside the innermost loop.
    "attention_mma_forward": Limit(registers=255, spill_bytes=16),
    # With head size 64, in bfloat16; nobody has timed it on this GPU.
    "attention_mma_forward sm_100": Limit(registers=255, spill_bytes=88),
    "attention_mma_dkdv": Limit(registers=255, spill_bytes=64),
    "attention_mma_dq": Limit(registers=255, spill_bytes=16),
    # In TF32 a number takes the room of two bfloat16. With head size 128 two blocks share the
    # columns of dkdv; with 112 one block has them all.
    "attention_mma_dkdv HS=112": Limit(registers=255, spill_bytes=512),
    "attention_mma_dq HS=128": Limit(registers=255, spill_bytes=104),
    # On CUDA cores a thread keeps a small tile of scores and outputs; some addresses spill, with
    # other head sizes on other GPUs.
    "attention_forward": Limit(registers=128, spill_bytes=108),
    "attention_dkdv": Limit(registers=220, spill_bytes=112),
    "attention_dq": Limit(registers=168, spill_bytes=88),
    # On sm_80, in bfloat16, with head size 64: a pack of 32 bytes; nobody has timed it there.
    "attention_decode sm_80": Limit(registers=128, spill_bytes=32),
    # Blocks of 128 threads, two to four on an SM.
    "attention_wgmma_forward": Limit(registers=168),
    "attention_wgmma_dkdv": Limit(registers=255),
    "attention_wgmma_dq": Limit(registers=168),
    # Three warpgroups in a block.
    "lm_head_gradient": Limit(registers=168),
    # Two blocks of 1024 threads on an SM leave 32 registers to a thread; on sm_100 some spill.
    "classifier": Limit(registers=64, spill_bytes=28),
    # A few words outside the loops, on GPUs before Hopper.
    "encoder_backward": Limit(registers=80, spill_bytes=32),
    # A thread keeps the sums of its columns in registers; 12288 channels are 8 packs of float32.
    "layernorm_backward": Limit(registers=168, spill_bytes=32),
    "layernorm_backward PACKS_PER_THREAD=8": Limit(registers=168, spill_bytes=168),
}


def limit_of(kernel: str, variant: Variant, capability: str) -> Limit:
    """The limit of a kernel in a variant of its file, on a GPU of this compute capability."""
    names = [f"{kernel} {name}={value}" for name, value in variant.constants]
    names.insert(0, f"{kernel} sm_{capability}")
    return next((LIMITS[key] for key in [*names, kernel] if key in LIMITS), DEFAULT_LIMIT)


@pytest.fixture(scope="session")
def nvrtc() -> Nvrtc:
    """The compiler; skips where it is not installed."""
    try:
        return Nvrtc()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("file", TRAINER_FILES)
@pytest.mark.parametrize(
    ("capabilities", "runs"),
    [
        pytest.param(FIRST_GENERATIONS, USUAL_RUNS, id="usual"),
        pytest.param(GENERATIONS, USUAL_RUNS, id="generations", marks=pytest.mark.slow),
        pytest.param(CAPABILITIES, ALL_RUNS, id="all", marks=pytest.mark.slow),
    ],
)
def test_what_runs_launch_compiles_within_its_limits(
    nvrtc: Nvrtc, file: str, capabilities: tuple[str, ...], runs: tuple[Run, ...]
) -> None:
    launched = list(variants_of(file, capabilities, runs))
    assert launched, f"no run launches a kernel of {file}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = list(pool.map(lambda one: nvrtc.log(one[1], one[0]), launched))
    over = []
    for (capability, variant, kernels), log in zip(launched, logs, strict=True):
        assert "wgmma.mma_async instructions are serialized" not in log, log
        found = {usage.kernel: usage for usage in usages(log)}
        assert kernels <= found.keys(), f"{kernels - found.keys()} not in the log:\n{log}"
        for name in sorted(kernels | (NEVER_LAUNCHED.keys() & found.keys())):
            limit, usage = limit_of(name, variant, capability), found[name]
            if usage.registers > limit.registers or usage.spill_bytes > limit.spill_bytes:
                over.append(
                    f"sm_{capability} {variant.floatX} {variant.constants}: {usage} over {limit}"
                )
    if nvrtc.version != LIMITS_OF:
        ours, theirs = (".".join(map(str, version)) for version in (nvrtc.version, LIMITS_OF))
        pytest.skip(f"it compiles; the limits are those of NVRTC {theirs}, this is {ours}")
    assert not over, "\n".join(over)


def test_limits_name_kernels_that_exist() -> None:
    text = "".join(p.read_text() for p in CUDA_DIR.rglob("*.cu"))
    missing = [key for key in LIMITS if not re.search(rf"\b{key.split()[0]}\b", text)]
    assert not missing, f"limits for kernels that no .cu file has: {missing}"


def test_usages_reads_ptxas() -> None:
    log = (
        "ptxas info    : Compiling entry function 'a' for 'sm_80'\n"
        "ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 21 registers, used 0 barriers\n"
        "ptxas info    : Compiling entry function 'b' for 'sm_80'\n"
        "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 9 registers\n"
    )
    assert usages(log) == [Usage("a", 21, 16), Usage("b", 9, 0)]


@pytest.mark.parametrize("order", [["sm_90a", "sm_90"], ["sm_90", "sm_90a"]])
def test_of_two_architectures_the_more_capable_is_compiled_for(
    nvrtc: Nvrtc, order: list[str]
) -> None:
    """A file for sm_90a gets that option from us, and sm_90 from CuPy."""
    source = 'extern "C" __global__ void f() { asm volatile("wgmma.fence.sync.aligned;"); }'
    settings = [f"-arch={architecture}" for architecture in order]
    log = nvrtc.compile(source, "f.cu", [*settings, "--ptxas-options=-v"])
    assert "entry function 'f' for 'sm_90a'" in log
