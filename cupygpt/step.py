"""One optimizer step: micro-batches, norm, clip, update; and evaluation over batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cupygpt.device import CPU
from cupygpt.memory import RunShape
from cupygpt.model import GPT, Dropout
from cupygpt.ops.adamw import adamw
from cupygpt.ops.classifier import loss_mean
from cupygpt.ops.encoder import token_order
from cupygpt.ops.global_norm import global_norm
from cupygpt.tensors import (
    Tensors,
    activation_specs,
    arena_bytes,
    cut_aligned,
    cut_packed,
    decay_segments,
    head_rows,
    parameter_specs,
    scratch_specs,
)


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


class Trainer:
    """All buffers of a run on one device, and what is done with them.

    `params`, `m` and `v` are what a checkpoint holds. `accumulation` micro-batches of (B, T) make
    one step.
    """

    def __init__(
        self,
        device: CPU,
        shape: RunShape,
        settings: OptimizerSettings,
        *,
        accumulation: int = 1,
        dropout_p: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.device, self.shape, self.settings = device, shape, settings
        self.accumulation = accumulation
        config, specs = shape.config, parameter_specs(shape.config)
        dtypes, P = shape.dtypes, config.num_parameters
        self.params = cut_packed(device.zeros(P, dtypes["floatX"]), specs)
        self.grads = cut_packed(device.zeros(P, dtypes["floatX"]), specs)
        self.m = cut_packed(device.zeros(P, dtypes["float32"]), specs)
        self.v = cut_packed(device.zeros(P, dtypes["float32"]), specs)
        self._segments = decay_segments(specs)
        self._controls = device.zeros(3, dtypes["float32"])
        self._rng_state = device.zeros(4, np.uint32)
        self._seed_words = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._tokens = device.zeros(shape.B * shape.T, np.int32).reshape(shape.B, shape.T)
        self._targets = device.zeros(shape.B * shape.T, np.int32).reshape(shape.B, shape.T)
        self._order = device.zeros(shape.B * shape.T, np.int32)
        self._loss = device.zeros(1, dtypes["float32"])
        self._norm = device.zeros(1, dtypes["float32"])
        acts, scratch = allocate_buffers(device, shape)
        dropout = Dropout(dropout_p, self._rng_state) if dropout_p else None
        self.model = GPT(
            config,
            self.params,
            self.grads,
            acts,
            scratch,
            recompute=shape.recompute,
            dropout=dropout,
        )

    def step(
        self, batches: Sequence[tuple[np.ndarray, np.ndarray]], step: int, rate: float
    ) -> StepResult:
        """Optimizer step `step` (0-based) at learning rate `rate` on `accumulation` batches."""
        assert len(batches) == self.accumulation
        losses = self.model.acts.losses
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._set_controls(step, rate)
            self.grads.flat.fill(0)
            losses.fill(0)
            num_tokens = self.accumulation * losses.size
            for micro_step, (tokens, targets) in enumerate(batches):
                self._load(tokens, targets)
                self.model.forward(self._tokens, micro_step=micro_step)
                self.device.upload(self._order, token_order(tokens))
                self.model.backward(
                    self._tokens,
                    self._targets,
                    self._order,
                    1.0 / num_tokens,
                    micro_step=micro_step,
                )
            loss_mean(self._loss, losses.reshape(-1), 1.0 / num_tokens)
            global_norm(self._norm, self.grads.flat, self.model.scratch.partials)
            self._update()
        return StepResult(self._read(self._loss), self._read(self._norm))

    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Mean loss in nats per token; targets of -1 do not count. Without dropout."""
        losses = self.model.acts.losses
        total, count = 0.0, 0
        with np.errstate(over="ignore", invalid="ignore"):
            for tokens, targets in batches:
                losses.fill(0)
                self._load(tokens, targets)
                self.model.forward(self._tokens)
                self.model.loss(self._targets)
                loss_mean(self._loss, losses.reshape(-1), 1.0)
                total += self._read(self._loss)
                count += int(np.count_nonzero(targets >= 0))
        return total / count

    def _set_controls(self, step: int, rate: float) -> None:
        t, settings = step + 1, self.settings
        corrections = (1.0 - settings.beta1**t, 1.0 - settings.beta2**t)
        self.device.upload(self._controls, np.array([rate, *corrections]))
        self.device.upload(self._rng_state, np.array([*self._seed_words, step, 0], np.uint32))

    def _load(self, tokens: np.ndarray, targets: np.ndarray) -> None:
        self.device.upload(self._tokens, tokens)
        self.device.upload(self._targets, targets)

    def _update(self) -> None:
        settings = self.settings
        adamw(
            self.params.flat,
            self.m.flat,
            self.v.flat,
            self.grads.flat,
            self._norm,
            self._controls,
            self._segments,
            beta1=settings.beta1,
            beta2=settings.beta2,
            weight_decay=settings.weight_decay,
            grad_clip=settings.grad_clip,
        )

    def _read(self, scalar: object) -> float:
        return float(self.device.download(scalar)[0])


def allocate_buffers(device: CPU, shape: RunShape) -> tuple[Tensors, Tensors]:
    """Activations and scratch for a model of this shape."""
    config, B, T, dtypes = shape.config, shape.B, shape.T, shape.dtypes

    def cut(specs: list) -> Tensors:  # type: ignore[type-arg]
        size = arena_bytes(specs, lambda name: dtypes[name].itemsize)
        return cut_aligned(device.zeros(size, np.uint8), specs, dtypes)

    acts = activation_specs(config, B, T, recompute=shape.recompute, training=shape.training)
    rows = head_rows(B, T)
    scratch = scratch_specs(config, B, T, training=shape.training, head_rows=rows)
    return cut(acts), cut(scratch)
