"""The ladders: for each op its kernels from the first idea to what training runs.

A rung has one idea. Its file is cuda/lab/<ladder>/<number>_<idea>.cu; the last rung of a ladder is
the trainer's own file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupygpt.kernels.load import find_cuda_dir
from cupygpt.lab.contracts.contract import Axis, Contract
from cupygpt.lab.contracts.table import (
    ADAMW,
    ATTENTION_FORWARD,
    COLUMN_SUM,
    CROSS_ENTROPY,
    GELU_BIAS_BACKWARD,
    GELU_FORWARD,
    LAYERNORM_FORWARD,
    MATMUL,
    MATMUL_BF16,
    RESIDUAL_LAYERNORM_FORWARD,
)


@dataclass(frozen=True)
class Rung:
    """One kernel file of a ladder. `file` is relative to cuda/."""

    number: int
    idea: str
    file: str
    contract: Contract
    is_own: bool = False
    """Whether it is the trainer's own file, which the op launches."""
    is_only_read: bool = False
    """Whether it stands there to be read: the lab neither runs nor estimates it."""
    repeats: bool = True
    """Whether two runs give the same bits."""
    axes: tuple[Axis, ...] | None = None
    """The small sizes at which it is counted; None: those of the contract."""

    @property
    def path(self) -> Path:
        """Where the file is."""
        return find_cuda_dir() / self.file


@dataclass(frozen=True)
class Ladder:
    """The rungs of one op, and what they teach."""

    name: str
    title: str
    lesson: str
    rungs: tuple[Rung, ...]
    dtype: str = "float32"
    """Of its table, where a rung takes it; else the rung's own."""

    def __iter__(self) -> Iterator[Rung]:
        return iter(self.rungs)


def _lab(number: int, idea: str, name: str, file: str, contract: Contract, **more: Any) -> Rung:
    return Rung(number, idea, f"lab/{name}/{number}_{file}.cu", contract, **more)


def _own(number: int, idea: str, file: str, contract: Contract, **more: Any) -> Rung:
    return Rung(number, idea, file, contract, is_own=True, **more)


_GELU = (
    _lab(1, "one thread per element", "gelu", "tanh", GELU_FORWARD),
    _lab(2, "one fast exponential", "gelu", "logistic", GELU_FORWARD),
    _lab(3, "128-bit accesses", "gelu", "packs", GELU_FORWARD),
    _own(4, "backward, bias (cupygpt)", "gelu.cu", GELU_BIAS_BACKWARD),
)
_LAYERNORM = (
    _lab(1, "one thread per row", "layernorm", "thread_per_row", LAYERNORM_FORWARD),
    _lab(2, "one warp per row", "layernorm", "warp_per_row", LAYERNORM_FORWARD),
    _lab(3, "the row stays in registers", "layernorm", "row_in_registers", LAYERNORM_FORWARD),
    _lab(4, "128-bit accesses", "layernorm", "packs", LAYERNORM_FORWARD),
    _own(5, "residual too (cupygpt)", "layernorm.cu", RESIDUAL_LAYERNORM_FORWARD),
)
_WHOLE_ROWS = ({"N": (4, 8)},)  # where a row lies depends on its length
_CROSS_ENTROPY = (
    _lab(1, "one thread per row", "cross_entropy", "thread_per_row", CROSS_ENTROPY),
    _lab(2, "one block per row, a tree", "cross_entropy", "block_per_row", CROSS_ENTROPY),
    _lab(3, "shuffles", "cross_entropy", "shuffles", CROSS_ENTROPY),
    _lab(4, "a running maximum", "cross_entropy", "running_maximum", CROSS_ENTROPY),
    _own(5, "row is kept (cupygpt)", "classifier.cu", CROSS_ENTROPY, axes=_WHOLE_ROWS),
)
_ROWS_SHARED = {"axes": ({"N": (1024, 2048)},)}  # the trainer's shares depend on their number
_COLUMN_SUM = (
    _lab(1, "one block per column", "column_sum", "block_per_column", COLUMN_SUM, **_ROWS_SHARED),
    _lab(2, "one thread per column", "column_sum", "thread_per_column", COLUMN_SUM, **_ROWS_SHARED),
    _lab(
        3,
        "rows shared out, atomics",
        "column_sum",
        "atomics",
        COLUMN_SUM,
        **_ROWS_SHARED,
        repeats=False,
    ),
    _own(4, "two steps (cupygpt)", "bias.cu", COLUMN_SUM),
)
_MATMUL = (
    _lab(1, "one thread per element", "matmul", "thread_per_element", MATMUL),
    _lab(2, "tiles in shared memory", "matmul", "tiles", MATMUL),
    _lab(3, "one word of padding", "matmul", "padding", MATMUL),
    _lab(4, "4 x 4 elements per thread", "matmul", "four_by_four", MATMUL),
    _lab(5, "8 x 8, 128-bit reads", "matmul", "eight_by_eight", MATMUL),
    _lab(6, "copies in the background", "matmul", "async_copies", MATMUL),
    _lab(7, "tensor cores", "matmul", "tensor_cores", MATMUL_BF16),
    _own(8, "wgmma (cupygpt, to read)", "lm_head.cu", MATMUL_BF16, is_only_read=True),
)
_ATTENTION = (
    _lab(1, "scores in memory", "attention", "scores_in_memory", ATTENTION_FORWARD),
    _lab(2, "running softmax", "attention", "running_softmax", ATTENTION_FORWARD),
    _lab(3, "keys and values in tiles", "attention", "tiles", ATTENTION_FORWARD),
    _lab(4, "several queries per thread", "attention", "several_queries", ATTENTION_FORWARD),
    _own(5, "tensor cores (cupygpt)", "attention/mma_forward.cu", ATTENTION_FORWARD),
)
_ADAMW = (
    _lab(1, "one thread per parameter", "adamw", "thread_per_parameter", ADAMW),
    _own(2, "128-bit accesses (cupygpt)", "adamw.cu", ADAMW),
)

LADDERS = {
    ladder.name: ladder
    for ladder in (
        Ladder("gelu", "GELU", "what a request is, and what a function costs", _GELU),
        Ladder("layernorm", "LayerNorm forward", "who reads which column", _LAYERNORM),
        Ladder("cross_entropy", "cross-entropy", "how threads join their results", _CROSS_ENTROPY),
        Ladder("column_sum", "column sum", "threads enough, in a fixed order", _COLUMN_SUM),
        Ladder("matmul", "matrix product", "how often a number is fetched", _MATMUL),
        Ladder("attention", "attention forward", "what need not be stored", _ATTENTION, "bfloat16"),
        Ladder("adamw", "AdamW", "when memory is the limit from the start", _ADAMW),
    )
}
"""By name, in the order of the course."""
