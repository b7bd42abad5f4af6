"""The losses of given tokens, batch after batch, on any device.

The batches may have any shape that fits the buffers, so that rows can be cut to the longest of
their batch. Nothing waits for the device between batches: while it computes one, the next are
queued, and the losses of an earlier one are read.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cupygpt.arrays import Array
from cupygpt.config import GPTConfig
from cupygpt.data.token_files import Ids
from cupygpt.data.validation import IGNORED_TARGET
from cupygpt.device.cpu_threads import num_cores
from cupygpt.device.device import Device, PendingRead
from cupygpt.device.precision import Precision
from cupygpt.errors import DeviceError, RunError
from cupygpt.model.gpt import GPT
from cupygpt.model.memory_plan import MEMORY_MARGIN, RunShape, largest_batch, shape_of_run
from cupygpt.model.parameters import parameters_on, weights_bytes
from cupygpt.model.tensors import (
    Tensors,
    TensorSpec,
    activation_specs,
    arena_bytes,
    cut_aligned,
    scratch_specs,
)

GPU_BATCH_TOKENS = 3 * 2**15
CPU_BATCH_TOKENS = 2**12
"""Tokens of a batch: enough for fast products, few enough for the memory of small devices."""

LENGTH_MULTIPLE = 16
"""Rows are filled up to a multiple of this, so that there are few different shapes."""

MOST_QUEUED = 3
"""Batches that the device is given before the losses of the first one are read."""

MOST_SHAPES = 64

Tag = TypeVar("Tag")
Losses = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch(Generic[Tag]):
    """Tokens (B, T) int32 and the targets (B, T) int32 whose losses are asked for, others -1.

    `tag` belongs to whoever made the batch.
    """

    inputs: Ids
    targets: Ids
    tag: Tag


@dataclass(frozen=True)
class Buffers:
    """Memory of one device for batches of up to `num_tokens` tokens.

    `acts` and `scratch` are flat arrays of bytes, at least as large as the tables of model/tensors
    want them for evaluation; `logits_rows` is the number of rows of logits in `scratch`.
    """

    acts: Array
    scratch: Array
    num_tokens: int
    logits_rows: int


class Scorer:
    """Computes losses with the given parameters. It owns no memory but that of its input."""

    def __init__(
        self,
        device: Device,
        config: GPTConfig,
        params: Tensors,
        precision: Precision,
        buffers: Buffers,
    ) -> None:
        self.device, self.config, self.precision = device, config, precision
        self._params, self._buffers = params, buffers
        self._input = device.zeros(2 * buffers.num_tokens, np.int32)
        self._models: dict[tuple[tuple[int, ...], int], GPT] = {}

    def rows_of(self, length: int) -> int:
        """How many rows of `length` tokens a batch may have; 0 if not even one fits."""
        return self._buffers.num_tokens // length

    def dry_run(self, length: int) -> None:
        """Make the calls of one batch of rows of `length` tokens, to see what they launch."""
        self._queue(*blank_batch(self.rows_of(length), length))

    def losses(self, batches: Iterable[Batch[Tag]]) -> Iterator[tuple[Batch[Tag], Losses]]:
        """Each batch with its losses (B, T) in nats, 0 where the target is -1.

        Raises RunError for losses that are not finite.
        """
        queued: deque[tuple[Batch[Tag], PendingRead]] = deque()
        for batch in batches:
            queued.append((batch, self._queue(batch.inputs, batch.targets)))
            if len(queued) >= MOST_QUEUED:
                yield _finished(*queued.popleft())
        while queued:
            yield _finished(*queued.popleft())

    def forward(self, inputs: Ids, layers: int | None = None) -> GPT:
        """The model after the forward pass of inputs (B, T), through its first `layers` layers.

        Its activations are those of the last of these layers, and stay until the next call.
        """
        assert 0 < inputs.size <= self._buffers.num_tokens, inputs.shape
        tokens = self._input[: inputs.size].reshape(inputs.shape)
        self.device.upload(tokens, inputs)
        model = self._model(inputs.shape, layers or self.config.L)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            model.forward(tokens)
        return model

    def _queue(self, inputs: Ids, targets: Ids) -> PendingRead:
        size = inputs.size
        assert 0 < size <= self._buffers.num_tokens, inputs.shape
        both = self._input[: 2 * size].reshape(2, *inputs.shape)
        self.device.upload(both, np.stack([inputs, targets]))
        model = self._model(inputs.shape, self.config.L)
        losses = model.acts.losses
        losses.fill(0)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            model.forward(both[0])
            model.loss(both[1])
        return self.device.read_later(losses)

    def _model(self, shape: tuple[int, ...], layers: int) -> GPT:
        """The model over views of the buffers for batches of this shape."""
        key = shape, layers
        if key not in self._models:
            if len(self._models) >= MOST_SHAPES:
                self._models.clear()
            buffers, (B, T) = self._buffers, shape
            acts, scratch = _specs(self.config, B, T, buffers.logits_rows)
            dtypes = self.precision.dtypes
            self._models[key] = GPT(
                replace(self.config, L=layers),
                self._params,
                None,
                cut_aligned(buffers.acts, acts, dtypes),
                cut_aligned(buffers.scratch, scratch, dtypes),
                precision=self.precision,
            )
        return self._models[key]


def make_scorer(
    device: Device, config: GPTConfig, weights: np.ndarray, precision: Precision, window: int
) -> Scorer:
    """A scorer of float32 `weights` (P,) with memory of its own, for rows of up to `window` tokens.

    The batches are as large as is useful, or as the free memory allows. Raises DeviceError, with
    the figures, if not even one row fits.
    """
    shape = _shape(device, config, precision, window, weights_bytes(config, precision))
    return _scorer(device, shape, parameters_on(device, config, weights, precision))


def scorer_of(
    device: Device, config: GPTConfig, params: Tensors, precision: Precision, window: int
) -> Scorer:
    """The same for parameters that are on the device already."""
    return _scorer(device, _shape(device, config, precision, window, 0), params)


def _scorer(device: Device, shape: RunShape, params: Tensors) -> Scorer:
    acts, scratch = _specs(shape.config, shape.B, 1, shape.logits_rows)
    buffers = Buffers(
        device.zeros(_num_bytes(acts, shape.precision), np.uint8),
        device.zeros(_num_bytes(scratch, shape.precision), np.uint8),
        shape.B,
        shape.logits_rows,
    )
    return Scorer(device, shape.config, params, shape.precision, buffers)


def _shape(
    device: Device, config: GPTConfig, precision: Precision, window: int, weights: int
) -> RunShape:
    """The shape of the buffers, as if each token were a row; `weights` bytes will be taken too."""
    shape = replace(
        shape_of_run(config, 1, 1, precision, on_gpu=device.is_gpu), training=False, master=False
    )
    return replace(shape, B=_batch_tokens(device, shape, window, weights))


def row_length(longest: int, window: int) -> int:
    """T of a batch whose longest row has `longest` tokens, of `window` at most."""
    return min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, window)


def blank_batch(num_rows: int, length: int) -> tuple[Ids, Ids]:
    """Inputs of 0 and targets of -1 (num_rows, length), to be filled."""
    targets = np.full((num_rows, length), IGNORED_TARGET, np.int32)
    return np.zeros((num_rows, length), np.int32), targets


def _batch_tokens(device: Device, shape: RunShape, window: int, weights: int) -> int:
    """The tokens of a batch: rows of `window` tokens, as many as are useful and fit."""
    useful = GPU_BATCH_TOKENS if device.is_gpu else max(CPU_BATCH_TOKENS, num_cores() * window)
    rows = max(1, useful // window)
    free = device.free_bytes()
    if free is not None:
        needed = weights + _bytes_for(shape, window, 1)
        budget = int(free * MEMORY_MARGIN) - weights
        fit = largest_batch(lambda B: _bytes_for(shape, window, B), budget)
        if not fit:
            raise DeviceError(
                f"the model needs {needed / 2**30:.2f} GiB to evaluate one row of {window} tokens, "
                f"{free / 2**30:.2f} GiB are free. Use a smaller window or another device, or "
                f"close other programs."
            )
        rows = min(rows, fit)
    return rows * window


def _bytes_for(shape: RunShape, window: int, rows: int) -> int:
    shape = replace(shape, B=rows * window)
    acts, scratch = _specs(shape.config, shape.B, 1, shape.logits_rows)
    sizes = _num_bytes(acts, shape.precision) + _num_bytes(scratch, shape.precision)
    return sizes + shape.workspace_bytes


def _specs(
    config: GPTConfig, B: int, T: int, logits_rows: int
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The tables of activations and scratch. All sizes depend on B times T alone."""
    acts = activation_specs(config, B, T, recompute=0, training=False)
    return acts, scratch_specs(config, B, T, training=False, logits_rows=logits_rows)


def _num_bytes(specs: Sequence[TensorSpec], precision: Precision) -> int:
    dtypes = precision.dtypes
    return arena_bytes(specs, lambda name: dtypes[name].itemsize)


def _finished(batch: Batch[Tag], read: PendingRead) -> tuple[Batch[Tag], Losses]:
    losses = read.value()
    # A sum is finite only if all its terms are.
    if not np.isfinite(losses.sum(dtype=np.float64)):
        raise RunError(
            "the losses are not finite numbers. The weights are damaged, or the training has "
            "diverged: take an earlier checkpoint."
        )
    return batch, losses
