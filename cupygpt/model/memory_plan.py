"""The memory of a run, planned before it is allocated."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cupygpt.config import GPT2_VOCAB, GPTConfig
from cupygpt.device.precision import FP32, Precision
from cupygpt.distributed.zero import shard_size
from cupygpt.errors import DeviceError
from cupygpt.kernels.matmul import WORKSPACE_BYTES
from cupygpt.model.parameters import weights_bytes
from cupygpt.model.tensors import (
    CPU_LOGITS_ROWS,
    GPU_LOGITS_ROWS,
    activation_specs,
    arena_bytes,
    decoder_specs,
    scratch_specs,
)

MEMORY_MARGIN = 0.95
"""Share of the free memory a plan may take; the rest is the interpreter's and the system's."""

MOST_ROWS = 64
"""Texts that are written at once: with more, a GPU gains little."""


@dataclass(frozen=True)
class RunShape:
    """Everything that determines the size of the buffers.

    `master`: whether a float32 copy of bfloat16 weights is kept. `logits_limit` is the most rows of
    logits that exist at once with GPT-2's vocabulary; a smaller vocabulary allows as many more rows
    as take the same memory. `zero_shards` is the number of ranks that share the optimizer's state
    (ZeRO-1; 1 without), `workspace_bytes` what the library of matrix products takes for itself,
    `row_order_bytes` what the order of the data takes beside the model on the CPU.
    """

    config: GPTConfig
    B: int
    T: int
    recompute: int = 0
    training: bool = True
    precision: Precision = FP32
    master: bool = False
    zero_shards: int = 1
    logits_limit: int = CPU_LOGITS_ROWS
    workspace_bytes: int = 0
    row_order_bytes: int = 0

    @property
    def logits_rows(self) -> int:
        """Rows of logits held at once: all of a small batch, else equal chunks of the limit."""
        limit = max(self.logits_limit, self.logits_limit * GPT2_VOCAB // self.config.V)
        chunks = -(-self.B * self.T // limit)
        return -(-self.B * self.T // chunks)

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """NumPy dtype of each dtype name in the tensor tables."""
        return self.precision.dtypes


def shape_of_run(
    config: GPTConfig,
    B: int,
    T: int,
    precision: Precision,
    *,
    on_gpu: bool,
    recompute: int = 0,
    master_weights: bool = True,
    zero_shards: int = 1,
) -> RunShape:
    """The shape of a training run in `precision`."""
    return RunShape(
        config,
        B,
        T,
        recompute=recompute,
        precision=precision,
        master=precision.rounds_storage and master_weights,
        zero_shards=zero_shards,
        logits_limit=GPU_LOGITS_ROWS if on_gpu else CPU_LOGITS_ROWS,
        workspace_bytes=WORKSPACE_BYTES if on_gpu else 0,
    )


def memory_plan(shape: RunShape) -> dict[str, int]:
    """Bytes by purpose, in the order in which they are allocated."""
    config, B, T = shape.config, shape.B, shape.T

    def size_of(name: str) -> int:
        return shape.dtypes[name].itemsize

    acts = activation_specs(config, B, T, recompute=shape.recompute, training=shape.training)
    scratch = scratch_specs(config, B, T, training=shape.training, logits_rows=shape.logits_rows)
    P = config.num_parameters
    kept = shard_size(P, shape.zero_shards)
    plan = {"parameters": kept * shape.zero_shards * size_of("floatX")}
    if shape.training:
        plan["gradients"] = P * size_of("float32")
        plan["optimizer"] = (3 if shape.master else 2) * kept * size_of("float32")
    plan["activations"] = arena_bytes(acts, size_of)
    plan["scratch"] = arena_bytes(scratch, size_of) + shape.workspace_bytes
    plan["sampling"] = arena_bytes(decoder_specs(config, 1), size_of)
    if shape.row_order_bytes >= 2**20:  # below, it is not worth a word
        plan["row order"] = shape.row_order_bytes
    return plan


def checkpoint_bytes(shape: RunShape) -> int:
    """The size of a checkpoint: the weights, and the optimizer's state of all ranks."""
    plan = memory_plan(shape)
    return plan["parameters"] + plan["optimizer"] * shape.zero_shards


def fits(shape: RunShape, free_bytes: int | None) -> bool:
    """Whether the plan fits into so much free memory; None means: nobody knows how much."""
    if free_bytes is None:
        return True
    return sum(memory_plan(shape).values()) <= int(free_bytes * MEMORY_MARGIN)


def check_fits(shape: RunShape, free_bytes: int | None, sharing: int = 1) -> None:
    """Raise DeviceError with the figures, and the largest -b that fits, if the plan does not.

    `sharing` is the number of ranks of a host of which each may take `free_bytes`.
    """
    if free_bytes is None or fits(shape, free_bytes):
        return
    needed = sum(memory_plan(shape).values())
    budget = int(free_bytes * MEMORY_MARGIN)
    best = largest_batch(lambda B: sum(memory_plan(_with_batch(shape, B)).values()), budget)
    advice = (
        f"The largest batch that fits is -b {best} at -t {shape.T}."
        if best
        else "Not even -b 1 fits: use a smaller model or a smaller -t."
    )
    each = "" if sharing == 1 else f" for each of the {sharing} ranks of a host"
    raise DeviceError(
        f"batch {shape.B} × {shape.T} needs {needed / 2**30:.2f} GiB, "
        f"{free_bytes / 2**30:.2f} GiB are free{each}. {advice}"
    )


def check_decoding_fits(
    config: GPTConfig, precision: Precision, free_bytes: int | None, rows: int = 1
) -> None:
    """Raise DeviceError with the figures if a model cannot write `rows` texts in `free_bytes`."""
    needed = _decoding_bytes(config, precision, rows)
    if free_bytes is None or needed <= int(free_bytes * MEMORY_MARGIN):
        return
    texts = "text" if rows == 1 else f"{rows} texts at once"
    advice = "another --device" if rows == 1 else "fewer texts at once, or another --device"
    raise DeviceError(
        f"the model needs {needed / 2**30:.2f} GiB to write {texts}, "
        f"{free_bytes / 2**30:.2f} GiB are free. Use {advice}, or close other programs."
    )


def rows_that_fit(
    config: GPTConfig, precision: Precision, free_bytes: int | None, rows: int
) -> int:
    """How many of `rows` texts a model can write at once; DeviceError if it is not even one."""
    check_decoding_fits(config, precision, free_bytes)
    if free_bytes is None:
        return rows
    budget = int(free_bytes * MEMORY_MARGIN)
    return min(rows, largest_batch(lambda n: _decoding_bytes(config, precision, n), budget))


def _decoding_bytes(config: GPTConfig, precision: Precision, rows: int) -> int:
    dtypes = precision.dtypes
    buffers = arena_bytes(decoder_specs(config, rows), lambda name: dtypes[name].itemsize)
    return weights_bytes(config, precision) + buffers


def largest_batch(needed: Callable[[int], int], budget: int) -> int:
    """Largest B with needed(B) <= budget, 0 if there is none; `needed` must not fall with B."""
    low, high = 0, 1
    while needed(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if needed(middle) <= budget:
            low = middle
        else:
            high = middle
    return low


def _with_batch(shape: RunShape, B: int) -> RunShape:
    return replace(shape, B=B)
