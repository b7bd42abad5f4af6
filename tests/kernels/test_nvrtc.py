"""Every .cu compiles for every supported GPU, within its limits of registers and spills.

No GPU is needed: NVRTC compiles to machine code for architectures that are not there, and ptxas's
figures come with its log.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.cache import cache_folder
from support.kernel_variants import is_for_hopper, option_sets

CUDA_DIR = Path(__file__).parents[2] / "cuda"
ARCHITECTURES = (75, 80, 90, 120)
"""One of each generation of registers and instructions."""
HOPPER = ("90a", 75)
"""For the files with wgmma: where they run, and one where they trap."""
SIBLINGS = (86, 89, 100)
"""The rest of the supported ones; compiling for them as well doubles the time of the suite."""


@dataclass(frozen=True)
class Limit:
    """The most that ptxas may report for a kernel, over all architectures and dtypes."""

    registers: int
    spill_bytes: int = 0


DEFAULT_LIMIT = Limit(registers=128)
# Kernels that need more, with the reason.
LIMITS: dict[str, Limit] = {
    # A warp keeps its rows of queries, scores and outputs in registers; what spills is addresses,
    # outside the innermost loop.
    "attention_mma_forward": Limit(registers=255, spill_bytes=32),
    "attention_mma_dkdv": Limit(registers=255, spill_bytes=128),
    "attention_mma_dq": Limit(registers=255, spill_bytes=32),
    # Blocks of 128 threads, two to four on an SM; addresses spill.
    "attention_wgmma_forward": Limit(registers=168),
    "attention_wgmma_dkdv": Limit(registers=255, spill_bytes=96),
    "attention_wgmma_dq": Limit(registers=168),
    "lm_head_statistics": Limit(registers=168),
    # With four warpgroups, which it is not launched with, it has 128 registers and spills.
    "lm_head_gradient": Limit(registers=168, spill_bytes=360),
    "attention_forward": Limit(registers=255, spill_bytes=128),
    "attention_dkdv": Limit(registers=255, spill_bytes=128),
    "attention_dq": Limit(registers=255, spill_bytes=128),
    # Two blocks of 1024 threads on an SM leave 32 registers; sm_100 alone spills some.
    "classifier": Limit(registers=64, spill_bytes=28),
    # A few words outside the loops, on GPUs before Hopper.
    "encoder_backward": Limit(registers=80, spill_bytes=32),
}


def variants() -> list[tuple[str, tuple[str, ...]]]:
    """(file, options) of all that the launch code may ask for."""
    files = sorted(p.relative_to(CUDA_DIR).as_posix() for p in CUDA_DIR.rglob("*.cu"))
    return [(file, options) for file in files for options in option_sets(file)]


def all_text(file: Path) -> str:
    """A source file with the project's headers that it includes."""
    text = file.read_text()
    for header in re.findall(r'#include "([\w./]+)"', text):
        if (CUDA_DIR / header).exists() and header != "lib/ptx.cuh":
            text += all_text(CUDA_DIR / header)
    return text


def needs_sm80(file: str) -> bool:
    """Whether a kernel calls a wrapper of ptx.cuh that traps on older GPUs."""
    return bool(re.search(r"\b(?:mma_m16n8k\w+|tf32_round)\s*\(", all_text(CUDA_DIR / file)))


class Nvrtc:
    """NVRTC through CuPy; logs of earlier compilations are kept in the cache folder."""

    def __init__(self, nvrtc: Any, include_dir: str) -> None:
        self._nvrtc, self._include_dir = nvrtc, include_dir
        headers = "".join(p.read_text() for p in sorted(CUDA_DIR.rglob("*.cuh")))
        self._base = f"{nvrtc.getVersion()} {headers}"
        self._cache = cache_folder("nvrtc")

    def log(self, file: str, architecture: int | str, options: Sequence[str]) -> str:
        """The compiler's log; AssertionError with that log if it fails."""
        source = (CUDA_DIR / file).read_text()
        settings = [f"-arch=sm_{architecture}", "-std=c++17", "--ptxas-options=-v", *options]
        key = hashlib.sha256(json.dumps([self._base, source, settings]).encode()).hexdigest()
        kept = self._cache / f"{file.replace('/', '-')}-{key[:20]}.log"
        if not kept.exists():
            text = self._compile(file, source, settings)
            part = kept.with_suffix(f".{os.getpid()}")
            part.write_text(text)
            part.replace(kept)
        return kept.read_text()

    def _compile(self, file: str, source: str, settings: list[str]) -> str:
        nvrtc = self._nvrtc
        program = nvrtc.createProgram(source, file, [], [])
        folders = [f"-I{CUDA_DIR}", f"-I{self._include_dir}"]
        try:
            nvrtc.compileProgram(program, [*settings, *folders])
            text = str(nvrtc.getProgramLog(program))
            assert nvrtc.getCUBIN(program)
        except nvrtc.NVRTCError as error:
            raise AssertionError(nvrtc.getProgramLog(program)) from error
        finally:
            nvrtc.destroyProgram(program)
        return text


@pytest.fixture(scope="session")
def nvrtc() -> Nvrtc:
    """The compiler; skips where it is not installed."""
    module = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="cuda-pathfinder is not installed")
    include_dir = pathfinder.find_nvidia_header_directory("cudart")
    if include_dir is None:
        pytest.skip(
            "the CUDA headers (cuda_bf16.h) are not installed: pip install cuda-toolkit[cudart]"
        )
    try:
        module.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"NVRTC cannot be loaded: {error}")
    return Nvrtc(module, include_dir)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture."""

    kernel: str
    registers: int
    spill_bytes: int


_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<frame>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def usages(log: str) -> list[Usage]:
    """The figures in a ptxas log.

    An array indexed at run time lies in local memory as spilled registers do, but shows as a stack
    frame alone.
    """
    return [
        Usage(
            m["kernel"],
            int(m["registers"]),
            max(int(m["frame"]), int(m["stores"]) + int(m["loads"])),
        )
        for m in _ENTRY.finditer(log)
    ]


@pytest.mark.parametrize(
    "architectures", [ARCHITECTURES, pytest.param(SIBLINGS, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("file", "options"), variants(), ids=[f"{f} {' '.join(o)}" for f, o in variants()]
)
def test_kernel_compiles_within_its_limits(
    nvrtc: Nvrtc, file: str, options: tuple[str, ...], architectures: tuple[int, ...]
) -> None:
    supported: list[int | str] = [a for a in architectures if a >= 80 or not needs_sm80(file)]
    if is_for_hopper(file):
        supported = [*HOPPER] if architectures == ARCHITECTURES else []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = list(pool.map(lambda a: nvrtc.log(file, a, options), supported))
    over = []
    for architecture, log in zip(supported, logs, strict=True):
        found = usages(log)
        assert found, f"no kernel in the log of {file}:\n{log}"
        assert "wgmma.mma_async instructions are serialized" not in log, log
        if is_for_hopper(file) and architecture != HOPPER[0]:
            continue  # it traps there, and registers do not matter
        for usage in found:
            limit = LIMITS.get(usage.kernel, DEFAULT_LIMIT)
            if usage.registers > limit.registers or usage.spill_bytes > limit.spill_bytes:
                over.append(f"sm_{architecture}: {usage} over {limit}")
    assert not over, "\n".join(over)


def test_limits_name_kernels_that_exist() -> None:
    text = "".join(p.read_text() for p in CUDA_DIR.rglob("*.cu"))
    missing = [name for name in LIMITS if not re.search(rf"\b{name}\b", text)]
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
