"""Learning-rate schedules, a function of the step alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

DECAY_START = 0.8
"""wsd (warm-up, stable, decay) starts to decay at this fraction of the run."""


EXTENSION_PEAK = 0.5
"""An extension rises to this fraction of the peak: the model has learnt, and forgets above it."""
EXTENSION_WARMUP = 0.1
"""The fraction of an extension in which the rate rises."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step: `warmup` steps up to `peak`, then by `kind` until `total`.

    cosine: half a cosine down to `final_fraction` times the peak. linear: a straight line there.
    wsd (warm-up, stable, decay): the peak, and over the last fifth a square root down to there.
    constant: the peak, without warm-up. After llm.c schedulers.h.

    `extensions` are the steps of each extension beyond `total`. In its first tenth the rate rises
    from where it was to half of the peak, and then falls again by `kind` to the same last rate. A
    rate that does not decay stays as it is.
    """

    kind: str
    peak: float
    warmup: int
    total: int
    final_fraction: float
    extensions: tuple[int, ...] = ()

    def __call__(self, step: int) -> float:
        """Learning rate of optimizer step `step` (0-based)."""
        if self.kind == "constant":
            return self.peak
        start = self.total
        for length in self.extensions:
            if start <= step < start + length:
                return self.extension(length)._rate_after(self.last, step - start)
            start += length
        return self._rate_after(0.0, step)

    @property
    def last(self) -> float:
        """The rate at the end of the run, and of each extension."""
        return self.peak if self.kind == "constant" else self.peak * self.final_fraction

    def extension(self, length: int) -> "Schedule":
        """The course of an extension of so many steps."""
        top = self.peak if self.kind == "constant" else max(self.last, EXTENSION_PEAK * self.peak)
        return Schedule(self.kind, top, int(EXTENSION_WARMUP * length), length, self.last / top)

    def _rate_after(self, before: float, step: int) -> float:
        """The rate of a course that rises from the rate `before`."""
        if step < self.warmup:
            return before + (self.peak - before) * (step + 1) / self.warmup
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
