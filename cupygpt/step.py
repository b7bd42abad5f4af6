"""One optimizer step: micro-batches, norm, clip, update; and evaluation over batches.

Everything between "the input is on the device" and "loss and norm are on the device" is one
function without arguments, so that a GPU runs it as one captured graph. What changes from step to
step (tokens, learning rate, dropout counter) lies in one input buffer, uploaded before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cupygpt.bfloat16 import to_bfloat16
from cupygpt.device import Device, PendingRead, Replay
from cupygpt.memory import RunShape
from cupygpt.model import GPT, Dropout
from cupygpt.ops.adamw import adamw
from cupygpt.ops.cast import cast
from cupygpt.ops.classifier import loss_mean
from cupygpt.ops.global_norm import global_norm
from cupygpt.tensors import (
    Tensors,
    TensorSpec,
    activation_specs,
    arena_bytes,
    cut_aligned,
    cut_packed,
    decay_segments,
    parameter_specs,
    scratch_specs,
)

NUM_CONTROLS, NUM_RNG_WORDS = 3, 4


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and clipping; the learning rate comes with each step."""

    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    grad_clip: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats per token, and the norm of all gradients before clipping."""

    loss: float
    norm: float


class PendingStep:
    """The result of a step that the device may still be computing."""

    def __init__(self, read: PendingRead) -> None:
        self._read = read

    def ready(self) -> bool:
        """Whether `result` returns without waiting."""
        return self._read.ready()

    def result(self) -> StepResult:
        """Loss and norm; waits for them."""
        loss, norm = self._read.value()
        return StepResult(float(loss), float(norm))


class Trainer:
    """All buffers of a run on one device, and what is done with them.

    `params`, `m`, `v` and, for bfloat16 weights, `master` (float32; else None) are what a checkpoint
    holds. `accumulation` micro-batches of (B, T) make
    one step. With `graph` the second step is captured and replayed from then on; the first runs
    op by op, because it loads kernels and chooses algorithms on its way.
    """

    def __init__(
        self,
        device: Device,
        shape: RunShape,
        settings: OptimizerSettings,
        *,
        accumulation: int = 1,
        dropout_p: float = 0.0,
        seed: int = 0,
        tf32: bool = False,
        graph: bool = False,
    ) -> None:
        self.device, self.shape, self.settings = device, shape, settings
        self.accumulation = accumulation
        config, specs = shape.config, parameter_specs(shape.config)
        dtypes, P = shape.dtypes, config.num_parameters
        self.params = cut_packed(device.zeros(P, dtypes["floatX"]), specs)
        self.master = device.zeros(P, dtypes["float32"]) if shape.master else None
        self.grads = cut_packed(device.zeros(P, dtypes["float32"]), specs)
        self.m = cut_packed(device.zeros(P, dtypes["float32"]), specs)
        self.v = cut_packed(device.zeros(P, dtypes["float32"]), specs)
        self._segments = decay_segments(specs)
        self._seed_words = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._cut_input(3 * accumulation * shape.B * shape.T)
        self._results = device.zeros(2, dtypes["float32"])
        acts, scratch = allocate_buffers(device, shape)
        self.model = GPT(
            config,
            self.params,
            self.grads,
            acts,
            scratch,
            recompute=shape.recompute,
            dropout=Dropout(dropout_p, self._rng_state) if dropout_p else None,
            tf32=tf32,
        )
        self._wants_graph, self._is_warm = graph, False
        self._graph: Replay | None = None

    def load_parameters(self, weights: np.ndarray) -> None:
        """Take float32 `weights` (P,), in file order; bfloat16 parameters are rounded from them."""
        if self.master is not None:
            self.device.upload(self.master, weights)
            cast(self.params.flat, self.master)
        elif self.shape.precision == "bfloat16":
            self.device.upload(self.params.flat, to_bfloat16(weights))
        else:
            self.device.upload(self.params.flat, weights)

    def step(self, packed: np.ndarray, step: int, rate: float) -> PendingStep:
        """Queue optimizer step `step` (0-based) at learning rate `rate`.

        `packed` (3, accumulation, B, T) int32 is made by feed.pack.
        """
        assert packed.shape == self._batches.shape, (packed.shape, self._batches.shape)
        self.device.upload(self._input, self._input_of(packed, step, rate))
        if self._graph is not None:
            self._graph.launch()
        elif self._wants_graph and self._is_warm:
            self._graph = self.device.capture(self._compute)
            self._graph.launch()
        else:
            self._compute()
            self._is_warm = True
        return PendingStep(self.device.read_later(self._results))

    def rehearse(self) -> None:
        """Make the calls of a run once, to see what they launch."""
        if self.master is not None:
            cast(self.params.flat, self.master)
        self._compute()
        self.model.forward(self._batches[0, 0])
        self.model.loss(self._batches[1, 0])

    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Mean loss in nats per token; targets of -1 do not count. Without dropout."""
        tokens, targets = self._batches[0, 0], self._batches[1, 0]
        losses = self.model.acts.losses
        total, count = 0.0, 0
        with np.errstate(over="ignore", invalid="ignore"):
            for inputs, wanted in batches:
                losses.fill(0)
                self.device.upload(tokens, inputs)
                self.device.upload(targets, wanted)
                self.model.forward(tokens)
                self.model.loss(targets)
                loss_mean(self._results[:1], losses.reshape(-1), 1.0)
                total += float(self.device.download(self._results)[0])
                count += int(np.count_nonzero(wanted >= 0))
        return total / count

    def _compute(self) -> None:
        """The step itself, from the input buffer to loss and norm; no argument, no waiting."""
        losses = self.model.acts.losses
        self.grads.flat.fill(0)
        losses.fill(0)
        scale = 1.0 / (self.accumulation * losses.size)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for micro_step in range(self.accumulation):
                tokens, targets, order = self._batches[:, micro_step]
                self.model.forward(tokens, micro_step=micro_step)
                self.model.backward(
                    tokens, targets, order.reshape(-1), scale, micro_step=micro_step
                )
            loss_mean(self._results[:1], losses.reshape(-1), scale)
            global_norm(self._results[1:], self.grads.flat, self.model.scratch.partials)
            self._update()

    def _update(self) -> None:
        settings = self.settings
        adamw(
            self.params.flat,
            self.m.flat,
            self.v.flat,
            self.grads.flat,
            self._results[1:],
            self._controls,
            self._segments,
            beta1=settings.beta1,
            beta2=settings.beta2,
            weight_decay=settings.weight_decay,
            grad_clip=settings.grad_clip,
            master=self.master,
            rng_state=self._rng_state,
        )

    def _cut_input(self, num_ids: int) -> None:
        """One buffer of 32-bit words, so that one copy brings all that a step needs."""
        shape, stop = self.shape, num_ids + NUM_CONTROLS
        self._input = self.device.zeros(stop + NUM_RNG_WORDS, np.int32)
        self._batches = self._input[:num_ids].reshape(3, self.accumulation, shape.B, shape.T)
        self._controls = self._input[num_ids:stop].view(np.float32)
        self._rng_state = self._input[stop:].view(np.uint32)

    def _input_of(self, packed: np.ndarray, step: int, rate: float) -> np.ndarray:
        t, settings = step + 1, self.settings
        corrections = (1.0 - settings.beta1**t, 1.0 - settings.beta2**t)
        controls = np.array([rate, *corrections], np.float32).view(np.int32)
        words = np.array([*self._seed_words, step, 0], np.uint32).view(np.int32)
        return np.concatenate([packed.reshape(-1), controls, words])


def allocate_buffers(device: Device, shape: RunShape) -> tuple[Tensors, Tensors]:
    """Activations and scratch for a model of this shape."""
    config, B, T, dtypes = shape.config, shape.B, shape.T, shape.dtypes

    def cut(specs: Sequence[TensorSpec]) -> Tensors:
        size = arena_bytes(specs, lambda name: dtypes[name].itemsize)
        return cut_aligned(device.zeros(size, np.uint8), specs, dtypes)

    acts = activation_specs(config, B, T, recompute=shape.recompute, training=shape.training)
    scratch = scratch_specs(config, B, T, training=shape.training, head_rows=shape.head_rows)
    return cut(acts), cut(scratch)
