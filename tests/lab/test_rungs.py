"""Every rung computes what its op computes, in awkward shapes, under the checker."""

import pytest

from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.kernels.load import find_cuda_dir
from cupygpt.lab.contracts.case import Case
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import LADDERS, Rung

pytestmark = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))

RUNGS = [rung for ladder in LADDERS.values() for rung in ladder if not rung.is_only_read]
CASES = [
    pytest.param(rung, dtype, id=f"{rung.file}-{dtype}")
    for rung in RUNGS
    for dtype in rung.contract.dtypes
]
MAX_LINES = 60


@pytest.mark.parametrize(("rung", "dtype"), CASES)
def test_a_rung_computes_its_op(rung: Rung, dtype: str) -> None:
    # The op's own tests run the trainer's kernels in all shapes.
    for sizes in rung.contract.awkward[-1:] if rung.is_own else rung.contract.awkward:
        case = Case.make(rung.contract, sizes, dtype)
        if rung.is_own:
            case.run_own()
        else:
            KernelFile.read(rung.path).run(case.arguments())
        case.verify()


@pytest.mark.parametrize("name", LADDERS)
def test_a_ladder_rises_to_the_kernels_that_train(name: str) -> None:
    ladder = LADDERS[name]
    assert [rung.number for rung in ladder] == list(range(1, len(ladder.rungs) + 1))
    assert [rung.is_own for rung in ladder] == [False] * (len(ladder.rungs) - 1) + [True]


@pytest.mark.parametrize("rung", [r for r in RUNGS if not r.is_own], ids=lambda rung: rung.file)
def test_a_rung_is_short_and_opens_with_its_idea(rung: Rung) -> None:
    lines = rung.path.read_text().splitlines()
    assert len(lines) <= MAX_LINES
    assert f", rung {rung.number}: " in lines[0]


def test_every_kernel_file_of_the_lab_is_a_rung() -> None:
    folder = find_cuda_dir() / "lab"
    files = {path for path in folder.rglob("*.cu") if path.parent.name != "warm_up"}
    assert files == {rung.path for rung in RUNGS if not rung.is_own}
