"""Every barrier of every kernel is tested: without it, at least one check fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulator import sample_cases
from emulator.cases import all_cases
from emulator.mutation import barriers, mutate, survives
from emulator.sample_cases import CUDA_DIR, SAMPLES
from support.launched_variants import TRAINER_FILES, USUAL_RUNS, variants_of

CASES = all_cases()
FILES = [(SAMPLES, p.name) for p in sorted(SAMPLES.glob("*.cu")) if CASES[p.name]] + [
    (CUDA_DIR, name) for name in TRAINER_FILES
]


@pytest.fixture(scope="session")
def mutant_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled mutants: each is used once and would only fill the user's cache."""
    return tmp_path_factory.mktemp("mutants")


def options_of(root: Path, name: str) -> list[list[str]]:
    """The options to compile a .cu file with; for a kernel in cuda/, those that runs choose."""
    if root != CUDA_DIR:
        return [["-DfloatX=float"], ["-DfloatX=__nv_bfloat16"]]
    return [
        [f"-DfloatX={variant.floatX}", *(f"-D{key}={value}" for key, value in variant.constants)]
        for _, variant, _ in variants_of(name, ("80", "90"), USUAL_RUNS)
    ]


def survivors_of(root: Path, name: str, tmp_path: Path) -> list[str]:
    """The barriers of the .cu file `name` in `root` that all cases pass without, as file:line."""
    found: set[tuple[Path, int]] = set()
    for options in options_of(root, name):
        found |= barriers(root / name, [f"-I{CUDA_DIR}", *options])
    assert not found or CASES[name], f"{name} has barriers and no case in op_cases.py"
    survivors = []
    for number, (file, line) in enumerate(sorted(found)):
        folder = tmp_path / str(number)
        # A sample may hold a barrier of a header in cuda/.
        owner = CUDA_DIR if CUDA_DIR in file.parents else root
        mutate(file, line, owner, folder)
        if survives(owner, folder, CASES[name]):
            survivors.append(f"{file}:{line}")
    return survivors


@pytest.mark.slow
@pytest.mark.parametrize(("root", "name"), FILES, ids=[name for _, name in FILES])
def test_no_barrier_is_missed(
    root: Path, name: str, tmp_path: Path, mutant_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(mutant_cache))
    survivors = survivors_of(root, name, tmp_path)
    assert not survivors, "no check fails without the barrier at " + ", ".join(survivors)


def test_a_redundant_barrier_survives(tmp_path: Path) -> None:
    """The test can fail: it reports a barrier that nothing needs."""
    folder = tmp_path / "original"
    folder.mkdir()
    text = (SAMPLES / "reduction.cu").read_text()
    marker = "const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;\n    v = warp_sum(v);\n"
    assert marker in text
    source = folder / "reduction.cu"
    source.write_text(text.replace(marker, marker + "    __syncthreads();\n    ;\n"))
    line = source.read_text().splitlines().index("    __syncthreads();") + 1
    mutate(source, line, folder, tmp_path / "mutant")
    assert survives(SAMPLES, tmp_path / "mutant", [sample_cases.moments])
