"""Where the time of a run goes: how many steps fit, and when a checkpoint is worth its time.

A first guess comes from the usual speed of such a device, a better one from a few steps on the
run's own buffers, before the first real one (`seconds_per_step`). When the warm-up is over, whose
learning rates do not depend on the length, the number of steps is fixed by the time that it took
(`steps_that_fit`), and recorded: a resumed run repeats it.

Where no flag says how often to save, saving may take 2 % of the time. A checkpoint is due at each
new best validation, and ten minutes after the last one, if it can be afforded. The weights of a
best validation that cannot be are kept in main memory, and written with the next checkpoint: the
last one at the latest.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cupygpt.checkpoint.state_file import TrainState
from cupygpt.device.cpu_threads import num_cores
from cupygpt.device.device import Device
from cupygpt.distributed.ranks import Ranks, broadcast_object
from cupygpt.training.trainer import Trainer

CPU_FLOPS_PER_CORE = 3e10
GPU_SHARE_OF_PEAK = 0.3
UNKNOWN_GPU_FLOPS = 5e12

WARM_STEPS, MEASURED_S = 2, 1.5
"""How many steps come before those that are timed, and how long all of them take."""

SAVE_SHARE = 0.02
SAVE_INTERVAL_S = 600.0

GUESSED_BYTES_PER_S = 5e8
"""How fast the first checkpoint is expected to be written."""


class Clock:
    """Where the time of a run goes: what was done, how often, and how many seconds it took."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Something of this kind took so long."""
        self._seconds[kind] = self.total(kind) + seconds
        self._counts[kind] = self._counts.get(kind, 0) + 1

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Add the time of the block."""
        start = time.perf_counter()
        yield
        self.add(kind, time.perf_counter() - start)

    def total(self, kind: str) -> float:
        """Seconds of all of this kind."""
        return self._seconds.get(kind, 0.0)

    def mean(self, kind: str) -> float:
        """Seconds of one of this kind; 0 if there was none."""
        return self.total(kind) / self._counts[kind] if kind in self._counts else 0.0

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.perf_counter() - self._began


def guess_steps(minutes: float, flops_per_step: int, device: Device) -> int:
    """A guess before anything was measured."""
    if device.is_gpu:
        peak = device.peak_flops("bf16")
        flops = GPU_SHARE_OF_PEAK * peak if peak else UNKNOWN_GPU_FLOPS
    else:
        flops = CPU_FLOPS_PER_CORE * num_cores()
    return max(1, int(60 * minutes * flops / flops_per_step))


def seconds_per_step(trainer: Trainer, packed: np.ndarray, ranks: Ranks) -> float:
    """Median seconds of a step; all `ranks` call, and get the same figure.

    The steps leave weights and moments that no run may use: load them afterwards.
    """
    times: list[float] = []
    began, goes_on = time.perf_counter(), True
    while goes_on:
        start = time.perf_counter()
        trainer.step(packed, step=0, lr=0.0).result()
        times.append(time.perf_counter() - start)
        enough = len(times) > WARM_STEPS + 2 and time.perf_counter() - began > MEASURED_S
        goes_on = broadcast_object(ranks, not enough)
    return float(broadcast_object(ranks, statistics.median(times[WARM_STEPS:])))


def steps_that_fit(
    minutes: float, clock: Clock, *, step: int, steps_before: int, val_every: int, sample_every: int
) -> int:
    """The number of steps of a run that stands at `step`, so that it ends after `minutes`.

    `steps_before` of them were taken before the run was resumed. Validations and samples go on as
    often as until now; one of each, and a checkpoint, come at the end.
    """
    step_s = clock.mean("step")
    of_reports = [
        clock.mean(kind) / every
        for kind, every in (("validation", val_every), ("sample", sample_every))
        if every
    ]
    at_the_end = clock.mean("validation") + clock.mean("sample") + clock.mean("save")
    left = 60 * minutes - clock.elapsed() - steps_before * step_s - at_the_end
    return step + max(1, int(left / (step_s + sum(of_reports))))


class SavePolicy:
    """Decides by the run's clock; `num_bytes` is the size of a checkpoint."""

    def __init__(self, clock: Clock, num_bytes: int) -> None:
        self._clock, self._guess_s = clock, num_bytes / GUESSED_BYTES_PER_S
        self._last_s = clock.elapsed()

    def affordable(self) -> bool:
        """Whether one more checkpoint keeps saving within its share of the time."""
        spent = self._clock.total("save")
        return (
            spent + (self._clock.mean("save") or self._guess_s)
            <= SAVE_SHARE * self._clock.elapsed()
        )

    def due(self) -> bool:
        """Whether the last checkpoint is so long ago that one should be written now."""
        return self._clock.elapsed() - self._last_s >= SAVE_INTERVAL_S and self.affordable()

    def saved(self) -> None:
        """A checkpoint was written."""
        self._last_s = self._clock.elapsed()


def copy_of(state: TrainState) -> TrainState:
    """The state with arrays of its own: on a CPU those of a state are the trainer's."""
    arrays = {
        name: None if array is None else np.array(array)
        for name, array in (
            ("params", state.params),
            ("m", state.m),
            ("v", state.v),
            ("master", state.master),
        )
    }
    return TrainState(state.progress, **arrays, zero_shard=state.zero_shard)
