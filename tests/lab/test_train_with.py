"""Training with a kernel in place of the trainer's: right kernels change nothing, wrong ones do."""

import pytest
from lab.planted import written

from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.errors import LabError
from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.contracts.table import (
    ADAMW,
    COLUMN_SUM,
    CROSS_ENTROPY,
    LAYERNORM_FORWARD,
    MATMUL,
)
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import LADDERS
from cupygpt.lab.train_with import losses_beside
from cupygpt.model import gpt
from cupygpt.ops.layernorm import layernorm_forward

pytestmark = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))


def rung_file(ladder: str, number: int) -> KernelFile:
    return KernelFile.read(LADDERS[ladder].rungs[number - 1].path)


@pytest.mark.parametrize(
    ("contract", "ladder", "number"),
    [
        (LAYERNORM_FORWARD, "layernorm", 1),
        (CROSS_ENTROPY, "cross_entropy", 4),
        (COLUMN_SUM, "column_sum", 2),
        (ADAMW, "adamw", 1),
    ],
)
def test_a_right_kernel_trains_as_ours(contract: Contract, ladder: str, number: int) -> None:
    _, losses = losses_beside(rung_file(ladder, number), contract, 4)
    for theirs, ours in losses:
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert gpt.layernorm_forward is layernorm_forward


def test_a_wrong_kernel_trains_differently() -> None:
    source = LADDERS["layernorm"].rungs[0].path.read_text()
    file = written("half", source.replace("normed * to_float(weight[c])", "0.5f * normed"))
    _, losses = losses_beside(file, LAYERNORM_FORWARD, 2)
    assert abs(losses[-1][0] - losses[-1][1]) > 1e-3


def test_an_op_that_training_does_not_have_is_named() -> None:
    with pytest.raises(LabError, match="matmul is no op of its own in training"):
        losses_beside(rung_file("matmul", 1), MATMUL, 1)
