"""Every barrier in every kernel is guarded: without it, at least one check fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulator import sample_cases
from emulator.cases import all_cases
from emulator.mutation import barriers, mutate, survives
from emulator.sample_cases import CUDA_DIR, SAMPLES
from kernel_variants import option_sets

CASES = all_cases()
FILES = [p for p in sorted(SAMPLES.glob("*.cu")) if CASES[p.name]] + sorted(CUDA_DIR.glob("*.cu"))


@pytest.fixture(scope="session")
def mutant_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mutants are compiled once and never again: they would only fill the user's cache."""
    return tmp_path_factory.mktemp("mutants")


def survivors_of(source: Path, tmp_path: Path) -> list[str]:
    """The barriers of a .cu file that no case misses, as file:line."""
    found: set[tuple[Path, int]] = set()
    for options in option_sets(source.name):
        found |= barriers(source, [f"-I{CUDA_DIR}", *options])
    assert not found or CASES[source.name], f"{source.name} has barriers and no case in op_cases.py"
    survivors = []
    for number, (file, line) in enumerate(sorted(found)):
        folder = tmp_path / str(number)
        mutate(file, line, folder)
        if survives(source, folder / source.name, CASES[source.name]):
            survivors.append(f"{file}:{line}")
    return survivors


@pytest.mark.slow
@pytest.mark.parametrize("source", FILES, ids=lambda p: p.name)
def test_no_barrier_is_missed(
    source: Path, tmp_path: Path, mutant_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(mutant_cache))
    survivors = survivors_of(source, tmp_path)
    assert not survivors, "no check fails without the barrier at " + ", ".join(survivors)


def test_a_redundant_barrier_survives(tmp_path: Path) -> None:
    """The test itself notices a barrier that nothing needs."""
    folder = tmp_path / "original"
    folder.mkdir()
    text = (SAMPLES / "reduction.cu").read_text()
    marker = "const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;\n    v = warp_sum(v);\n"
    assert marker in text
    source = folder / "reduction.cu"
    source.write_text(text.replace(marker, marker + "    __syncthreads();\n    ;\n"))
    line = source.read_text().splitlines().index("    __syncthreads();") + 1
    mutate(source, line, tmp_path / "mutant")
    assert survives(
        SAMPLES / "reduction.cu", tmp_path / "mutant" / "reduction.cu", [sample_cases.moments]
    )
