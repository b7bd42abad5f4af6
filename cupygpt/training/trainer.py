"""One optimizer step: micro-batches, norm, clip, update; and evaluation over batches.

Everything between "the input is on the device" and "loss and norm are on the device" is one
function, `Trainer._compute`, so that a GPU runs it as one captured graph. All that changes from
step to step lies in one input buffer, which is uploaded before: tokens, targets, the order of the
tokens, learning rate, AdamW's bias corrections, and the counter of the random numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cupygpt.checkpoint.state_file import Progress, TrainState
from cupygpt.device.device import Device, PendingRead, Replay
from cupygpt.distributed.collectives import ONE_RANK_COLLECTIVES, Collectives, make_collectives
from cupygpt.distributed.ranks import Ranks
from cupygpt.distributed.zero import segments_of_shard, shard_of, shard_size
from cupygpt.model.gpt import GPT, Dropout
from cupygpt.model.memory_plan import RunShape
from cupygpt.model.tensors import (
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
from cupygpt.ops.adamw import adamw
from cupygpt.ops.cast import cast_to_bfloat16
from cupygpt.ops.global_norm import global_norm
from cupygpt.ops.loss_mean import loss_mean
from cupygpt.planning.plan import Plan

NUM_CONTROLS = 3
"""Learning rate and the two bias corrections of AdamW."""

NUM_RNG_WORDS = 4
"""Two words of seed, the step, and one that Philox's 128-bit counter leaves at 0."""


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
    grad_norm: float


class PendingStep:
    """The result of a step that the device may still be computing."""

    def __init__(self, read: PendingRead) -> None:
        self._read = read

    @property
    def event(self) -> Any:
        """The end of the step, as `Device.record` gives it."""
        return self._read.event

    def ready(self) -> bool:
        """Whether `result` returns without waiting."""
        return self._read.ready()

    def result(self) -> StepResult:
        """Loss and norm; waits for them."""
        loss, grad_norm = self._read.value()
        return StepResult(float(loss), float(grad_norm))


class Trainer:
    """All buffers of a run on one device, and what is done with them.

    A checkpoint holds `params`, `m`, `v` and, for bfloat16 weights, `master` (float32; else None).
    `accumulation` micro-batches of (B, T) make one step. With `graph` the second step is captured,
    and replayed from then on. The first step runs op by op: while a graph is captured, nothing may
    allocate or load code, and a first call does.

    `collectives` sum the gradients and losses of all ranks, one layer at a time, in parallel with
    the backward pass of the layers below. With `shape.zero_shards` above 1 (ZeRO-1) a rank then
    updates only its `zero_shard` of the parameters, has m, v and master for that shard only, and
    the ranks gather the zero shards. All ranks still reduce all gradients: a reduce-scatter would
    move a third less, but a zero shard spans many layers, so it could start only after backward.
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
        graph: bool = False,
        collectives: Collectives = ONE_RANK_COLLECTIVES,
    ) -> None:
        self.device, self.shape, self.settings = device, shape, settings
        self.accumulation = accumulation
        self._collectives = collectives
        self.rank, self.world = collectives.rank, collectives.world
        assert shape.zero_shards in (1, self.world), (shape.zero_shards, self.world)
        config, specs = shape.config, parameter_specs(shape.config)
        dtypes, P = shape.dtypes, config.num_parameters
        self.zero_shard = shard_of(P, shape.zero_shards, self.rank if shape.zero_shards > 1 else 0)
        # ZeRO-1 gathers the shards in place. They must be equal: leave room for a full last one.
        self._gathered = device.zeros(
            shard_size(P, shape.zero_shards) * shape.zero_shards, dtypes["floatX"]
        )
        self.params = cut_packed(self._gathered[:P], specs)
        self.master = (
            device.zeros(self.zero_shard.size, dtypes["float32"]) if shape.master else None
        )
        self.grads = cut_packed(device.zeros(P, dtypes["float32"]), specs)
        self.m = device.zeros(self.zero_shard.size, dtypes["float32"])
        self.v = device.zeros(self.zero_shard.size, dtypes["float32"])
        self._segments = segments_of_shard(decay_segments(specs), self.zero_shard)
        self._seed_words = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._cut_input(3 * accumulation * shape.B * shape.T)
        self._results = device.zeros(2, dtypes["float32"])
        acts, scratch = allocate_buffers(device, shape)
        # Dropout draws the masks that one batch of all ranks would have.
        rng_offset = self.rank * shape.B * shape.T * config.C
        self.model = GPT(
            config,
            self.params,
            self.grads,
            acts,
            scratch,
            recompute=shape.recompute,
            dropout=Dropout(dropout_p, self._rng_state, rng_offset) if dropout_p else None,
            precision=shape.precision,
        )
        self._wants_graph, self._is_warm = graph, False
        self._graph: Replay | None = None

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        """(accumulation, B, T) of the input of a step."""
        return self.accumulation, self.shape.B, self.shape.T

    def load_parameters(self, weights: np.ndarray, master: np.ndarray | None = None) -> None:
        """Take float32 `weights` (P,), in file order; bfloat16 parameters are rounded from them.

        `master` is this rank's zero shard of the master weights, taken from `weights` by default.
        """
        if self.master is not None:
            own = slice(self.zero_shard.start, self.zero_shard.stop)
            self.device.upload(self.master, weights[own] if master is None else master)
        if self.master is not None and self.shape.zero_shards == 1:
            cast_to_bfloat16(self.params.flat, self.master)
        else:
            self.device.upload(self.params.flat, self.shape.precision.encode(weights))

    def load_new(self, weights: np.ndarray) -> None:
        """Begin with float32 `weights` (P,) and moments of zero."""
        self.load_parameters(weights)
        self.m.fill(0)
        self.v.fill(0)

    def state(self, progress: Progress) -> TrainState:
        """What this rank saves in a checkpoint, on the host; the run stands at `progress`."""
        download, sharded = self.device.download, self.shape.zero_shards > 1
        has_state = self.rank == 0 or sharded
        has_master = has_state and self.master is not None
        return TrainState(
            progress,
            params=download(self.params.flat) if self.rank == 0 else None,
            m=download(self.m) if has_state else None,
            v=download(self.v) if has_state else None,
            master=download(self.master) if has_master else None,
            zero_shard=self.zero_shard if sharded else None,
        )

    def load(self, state: TrainState) -> None:
        """Continue from a loaded checkpoint."""
        assert state.m is not None
        assert state.v is not None
        self.load_parameters(state.float32_weights(), state.master)
        self.device.upload(self.m, state.m)
        self.device.upload(self.v, state.v)

    def step(self, packed: np.ndarray, step: int, lr: float) -> PendingStep:
        """Queue optimizer step `step` (0-based) at learning rate `lr`.

        `packed` (3, accumulation, B, T) int32 is made by loader.pack.
        """
        assert packed.shape == self._batches.shape, (packed.shape, self._batches.shape)
        self.device.upload(self._input, self._input_of(packed, step, lr))
        if self._graph is not None:
            self._graph.launch()
        elif self._wants_graph and self._is_warm:
            self._graph = self.device.capture(lambda: self._compute(self._collectives))
            self._graph.launch()
        else:
            self._compute(self._collectives)
            self._is_warm = True
        return PendingStep(self.device.read_later(self._results))

    def dry_run(self) -> None:
        """Make the calls of a run once, without the other ranks, to see what they launch."""
        if self.master is not None and self.shape.zero_shards == 1:
            cast_to_bfloat16(self.params.flat, self.master)
        self._compute(ONE_RANK_COLLECTIVES)
        self.model.forward(self._batches[0, 0])
        self.model.loss(self._batches[1, 0])

    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Mean loss in nats per token; targets of -1 do not count. Without dropout."""
        return mean_loss(self.sum_losses(batches))

    def sum_losses(
        self, batches: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[float, int]]:
        """Sum of the losses, and number of targets that count, of each batch."""
        sums = []
        for inputs, wanted in batches:
            self.device.upload(self._batches[0, 0], inputs)
            self.device.upload(self._batches[1, 0], wanted)
            sums.append((self.loss_of_input(), int(np.count_nonzero(wanted >= 0))))
        return sums

    def loss_of_input(self) -> float:
        """The summed loss of what the input buffer holds, without dropout.

        It is finite unless the weights have diverged. Of a step only the first micro-batch counts.
        """
        losses = self.model.acts.losses
        losses.fill(0)
        with np.errstate(over="ignore", invalid="ignore"):
            self.model.forward(self._batches[0, 0])
            self.model.loss(self._batches[1, 0])
            loss_mean(self._results[:1], losses.reshape(-1), 1.0)
        return float(self.device.download(self._results)[0])

    def _compute(self, collectives: Collectives) -> None:
        """The step itself, from the input buffer to loss and norm; nothing here waits."""
        losses = self.model.acts.losses
        self.grads.flat.fill(0)
        losses.fill(0)
        dloss = 1.0 / (self.accumulation * losses.size * self.world)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for micro_step in range(self.accumulation):
                tokens, targets, order = self._batches[:, micro_step]
                is_last = micro_step == self.accumulation - 1
                self.model.forward(tokens, micro_step=micro_step)
                self.model.backward(
                    tokens,
                    targets,
                    order.reshape(-1),
                    dloss,
                    micro_step=micro_step,
                    layer_done=partial(self._reduce_layer, collectives) if is_last else None,
                )
            loss_mean(self._results[:1], losses.reshape(-1), dloss)
            collectives.all_reduce_async([*self.grads.outside_layers(), self._results[:1]])
            collectives.wait()
            global_norm(self._results[1:], self.grads.flat, self.model.scratch.partials)
            self._update()
            if self.shape.zero_shards > 1:
                size = shard_size(self.params.flat.size, self.shape.zero_shards)
                collectives.all_gather(self._gathered, self.rank * size, (self.rank + 1) * size)

    def _reduce_layer(self, collectives: Collectives, layer: int) -> None:
        """Begin to sum a layer's gradients over the ranks, while backward continues below it."""
        collectives.all_reduce_async([grad for _, grad in self.grads.layer(layer).items()])

    def _update(self) -> None:
        """AdamW on this rank's zero shard of the parameters."""
        settings, own = self.settings, slice(self.zero_shard.start, self.zero_shard.stop)
        adamw(
            self.params.flat[own],
            self.m,
            self.v,
            self.grads.flat[own],
            self._results[1:],
            self._controls,
            self._segments,
            beta1=settings.beta1,
            beta2=settings.beta2,
            weight_decay=settings.weight_decay,
            grad_clip=settings.grad_clip,
            master=self.master,
            rng_state=self._rng_state,
            rng_offset=self.zero_shard.start,
        )

    def _cut_input(self, num_ids: int) -> None:
        """One buffer of 32-bit words, so that one copy brings all that a step needs."""
        shape, stop = self.shape, num_ids + NUM_CONTROLS
        self._input = self.device.zeros(stop + NUM_RNG_WORDS, np.int32)
        self._batches = self._input[:num_ids].reshape(3, self.accumulation, shape.B, shape.T)
        self._controls = self._input[num_ids:stop].view(np.float32)
        self._rng_state = self._input[stop:].view(np.uint32)

    def _input_of(self, packed: np.ndarray, step: int, lr: float) -> np.ndarray:
        t, settings = step + 1, self.settings
        corrections = (1.0 - settings.beta1**t, 1.0 - settings.beta2**t)
        controls = np.array([lr, *corrections], np.float32).view(np.int32)
        words = np.array([*self._seed_words, step, 0], np.uint32).view(np.int32)
        return np.concatenate([packed.reshape(-1), controls, words])


def make_trainer(plan: Plan, ranks: Ranks) -> Trainer:
    """The trainer of a run, with the settings that its flags ask for."""
    config = plan.config
    return Trainer(
        plan.device,
        plan.shape,
        OptimizerSettings(config.beta1, config.beta2, config.weight_decay, config.grad_clip),
        accumulation=plan.accumulation,
        dropout_p=config.dropout,
        seed=config.seed,
        graph=plan.device.is_gpu and not config.no_graph,
        collectives=make_collectives(plan.device, ranks),
    )


def mean_loss(sums: Iterable[tuple[float, int]]) -> float:
    """Mean over all targets of batches whose (sum, count) are given, added in their order."""
    total, count = 0.0, 0
    for part, size in sums:
        total += part
        count += size
    return total / count


def allocate_buffers(device: Device, shape: RunShape) -> tuple[Tensors, Tensors]:
    """Activations and scratch for a model of this shape."""
    config, B, T, dtypes = shape.config, shape.B, shape.T, shape.dtypes

    def cut(specs: Sequence[TensorSpec]) -> Tensors:
        size = arena_bytes(specs, lambda name: dtypes[name].itemsize)
        return cut_aligned(device.zeros(size, np.uint8), specs, dtypes)

    acts = activation_specs(config, B, T, recompute=shape.recompute, training=shape.training)
    scratch = scratch_specs(config, B, T, training=shape.training, logits_rows=shape.logits_rows)
    return cut(acts), cut(scratch)
