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


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.file)
def test_nvrtc_compiles_a_rung(nvrtc: Nvrtc, rung: Rung) -> None:
    for dtype in rung.contract.dtypes:
        arguments = Case.make(rung.contract, rung.contract.awkward[-1], dtype).arguments()
        defines = KernelFile.read(rung.path).defines(arguments)
        variant = Variant(object, rung.file, arguments.floatX, tuple(sorted(defines.items())))
        for capability in ("75", "90"):
            log = nvrtc.log(variant, capability)
            assert "Compiling entry function" in log, log
