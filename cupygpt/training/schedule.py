"""Learning-rate schedules, a function of the step alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

DECAY_START = 0.8
"""wsd (warm-up, stable, decay) starts to decay at this fraction of the run."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step: `warmup` steps up to `peak`, then by `kind` until `total`.

    cosine: half a cosine down to `final_fraction` times the peak. linear: a straight line there.
    wsd (warm-up, stable, decay): the peak, and over the last fifth a square root down to there.
    constant: the peak, without warm-up. After llm.c schedulers.h.
    """

    kind: str
    peak: float
    warmup: int
    total: int
    final_fraction: float

    def __call__(self, step: int) -> float:
        """Learning rate of optimizer step `step` (0-based)."""
        if self.kind == "constant":
            return self.peak
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return _DECAYS[self.kind](self, step)


def _cosine(schedule: Schedule, step: int) -> float:
    floor = schedule.peak * schedule.final_fraction
    return floor + 0.5 * (1.0 + math.cos(math.pi * _progress(schedule, step))) * (
        schedule.peak - floor
    )


def _linear(schedule: Schedule, step: int) -> float:
    floor = schedule.peak * schedule.final_fraction
    return schedule.peak - _progress(schedule, step) * (schedule.peak - floor)


def _wsd(schedule: Schedule, step: int) -> float:
    start = int(DECAY_START * schedule.total)
    if step < start:
        return schedule.peak
    floor = schedule.peak * schedule.final_fraction
    progress = (step - start) / max(1, schedule.total - start)
    return floor + (1.0 - math.sqrt(progress)) * (schedule.peak - floor)


def _progress(schedule: Schedule, step: int) -> float:
    return min(1.0, (step - schedule.warmup) / max(1, schedule.total - schedule.warmup))


_DECAYS: dict[str, Callable[[Schedule, int], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
}
