"""NVIDIA's compiler takes every rung, for the oldest GPU that is supported and for a new one."""

import pytest
from kernels.nvrtc import Nvrtc

from cupygpt.errors import DeviceError
from cupygpt.kernels.load import Variant
from cupygpt.lab.contracts.case import Case
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import LADDERS, Rung

RUNGS = [rung for ladder in LADDERS.values() for rung in ladder if not rung.is_own]


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    """The compiler; skips where it is not installed."""
    try:
        return Nvrtc()
    except DeviceError as error:
        pytest.skip(str(error))


OLDEST, NEW = "75", "90"
QUICK = {("float32", OLDEST), ("bfloat16", NEW)}
"""What runs have mostly; the other pairs are slow tests."""
CASES = [
    pytest.param(
        rung,
        dtype,
        capability,
        id=f"{rung.file}-{dtype}-{capability}",
        marks=[] if (dtype, capability) in QUICK else [pytest.mark.slow],
    )
    for rung in RUNGS
    for dtype in rung.contract.dtypes
    for capability in (OLDEST, NEW)
]


@pytest.mark.parametrize(("rung", "dtype", "capability"), CASES)
def test_nvrtc_compiles_a_rung(nvrtc: Nvrtc, rung: Rung, dtype: str, capability: str) -> None:
    arguments = Case.make(rung.contract, rung.contract.awkward[-1], dtype).arguments()
    defines = KernelFile.read(rung.path).defines(arguments)
    variant = Variant(object, rung.file, arguments.floatX, tuple(sorted(defines.items())))
    log = nvrtc.log(variant, capability)
    assert "Compiling entry function" in log, log
