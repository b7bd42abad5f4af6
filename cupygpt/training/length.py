"""How many steps fit into the minutes that a run is given.

A first guess comes with the plan, a better one from a few steps on the run's own buffers, before
the first real one (`measured_plan`). When the warm-up is over, whose learning rates do not depend
on the length, the number of steps is fixed by the time that it took (`final_plan`), and recorded: a
resumed run repeats it.
"""

import statistics
import time
from dataclasses import replace

import numpy as np

from cupygpt.data.loader import pack
from cupygpt.distributed.ranks import Ranks, broadcast_object
from cupygpt.planning.plan import Plan
from cupygpt.training.clock import Clock
from cupygpt.training.trainer import Trainer

WARM_STEPS, MEASURED_SHARE, MOST_MEASURED_S = 2, 0.02, 1.5
"""How many steps come before those that are timed; the share of the minutes that all take."""

RESERVE = 0.95
"""The share of the time that the steps get before it is known what validations take."""

FEWEST_TIMED_STEPS = 10


def measured_plan(
    plan: Plan, trainer: Trainer, clock: Clock, ranks: Ranks, *, step: int
) -> tuple[Plan, float]:
    """The plan of a run that stands at `step` by a few timed steps, and the seconds of one.

    All `ranks` call.

    The steps leave weights and moments that no run may use: load them afterwards.
    """
    seconds = _seconds_per_step(plan, trainer, ranks)
    left = RESERVE * (60 * plan.minutes - clock.elapsed())
    return plan.with_steps(broadcast_object(ranks, max(step + 1, int(left / seconds)))), seconds


def fixed_at(plan: Plan, first_step: int) -> int:
    """The step at which the number of steps is fixed: where the warm-up ends, as a rule.

    Some steps from `first_step` on, the first of this command, are timed before.
    """
    warm = min(max(plan.config.warmup, FEWEST_TIMED_STEPS), max(1, plan.steps // 5))
    timed = min(FEWEST_TIMED_STEPS, max(1, (plan.steps - first_step) // 5))
    return max(warm, first_step + timed)


def final_plan(plan: Plan, clock: Clock, ranks: Ranks, *, step: int, steps_before: int) -> Plan:
    """The plan with the number of steps that fits, for a run that stands at `step`.

    `steps_before` of them were taken before the run was resumed. All `ranks` call.
    """
    config = plan.config
    steps = steps_that_fit(
        plan.minutes,
        clock,
        step=step,
        steps_before=steps_before,
        val_every=config.val_every if plan.validation is not None else 0,
        sample_every=config.sample_every,
    )
    return replace(plan, steps=broadcast_object(ranks, steps), steps_are_fixed=True)


def steps_that_fit(
    minutes: float, clock: Clock, *, step: int, steps_before: int, val_every: int, sample_every: int
) -> int:
    """The number of steps of a run that stands at `step`, so that it ends after `minutes`.

    Validations and samples go on as often as until now; one of each, and a checkpoint, come at the
    end.
    """
    step_s = clock.mean("step")
    of_reports = [
        clock.mean(kind) / every
        for kind, every in (
            ("validation", val_every),
            ("questions", val_every),
            ("sample", sample_every),
        )
        if every
    ]
    at_the_end = sum(map(clock.mean, ("validation", "questions", "sample", "save")))
    left = 60 * minutes - clock.elapsed() - steps_before * step_s - at_the_end
    return step + max(1, int(left / (step_s + sum(of_reports))))


def _seconds_per_step(plan: Plan, trainer: Trainer, ranks: Ranks) -> float:
    """The median; all `ranks` get the same."""
    V, shape = plan.shape.config.V, trainer.batch_shape
    tokens = np.random.default_rng(0).integers(0, V, shape, np.int32)
    packed = pack([(batch, batch) for batch in tokens])
    times: list[float] = []
    began, goes_on = time.perf_counter(), True
    longest_s = min(MEASURED_SHARE * 60 * plan.minutes, MOST_MEASURED_S)
    while goes_on:
        start = time.perf_counter()
        trainer.step(packed, step=0, lr=0.0).result()
        times.append(time.perf_counter() - start)
        enough = len(times) > WARM_STEPS + 2 and time.perf_counter() - began > longest_s
        goes_on = broadcast_object(ranks, not enough)
    return float(broadcast_object(ranks, statistics.median(times[WARM_STEPS:])))
