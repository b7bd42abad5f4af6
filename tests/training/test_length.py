"""Where the time of a run goes, and how many steps fit into some minutes."""

import pytest
from support.small_runs import StillTime, still_time

from cupygpt.training.clock import Clock
from cupygpt.training.length import steps_that_fit


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> StillTime:
    return still_time(monkeypatch)


def clock_after(still: StillTime, seconds: float, **spent: tuple[int, float]) -> Clock:
    """A clock of a run that began so long ago; `spent` are (how often, seconds each) by kind."""
    clock = Clock(began=0.0)
    for kind, (count, each) in spent.items():
        for _ in range(count):
            clock.add(kind, each)
    still.now = seconds
    return clock


def test_the_clock_adds_up_by_kind(still: StillTime) -> None:
    clock = clock_after(still, 10.0, step=(4, 0.5))
    with clock.measure("save"):
        still.now += 3.0
    assert (clock.total("step"), clock.mean("step")) == (2.0, 0.5)
    assert (clock.total("save"), clock.mean("save")) == (3.0, 3.0)
    assert (clock.total("sample"), clock.mean("sample")) == (0.0, 0.0)
    assert clock.elapsed() == 13.0


def test_the_steps_fill_the_minutes(still: StillTime) -> None:
    """After 12 of 120 s at 0.1 s a step; a validation of 2 s every 100 steps, a sample every 200.

    108 s are left, less 2 + 1 + 0.5 s at the end; a step with its share of reports takes 0.125 s.
    """
    clock = clock_after(
        still, 12.0, step=(100, 0.1), validation=(1, 2.0), sample=(1, 1.0), save=(1, 0.5)
    )
    steps = steps_that_fit(2.0, clock, step=100, steps_before=0, val_every=100, sample_every=200)
    assert steps == 100 + int((108 - 3.5) / 0.125)
    without = steps_that_fit(2.0, clock, step=100, steps_before=0, val_every=0, sample_every=0)
    assert without == 100 + int((108 - 3.5) / 0.1)


def test_steps_before_an_interruption_count(still: StillTime) -> None:
    clock = clock_after(still, 6.0, step=(50, 0.1))
    steps = steps_that_fit(1.0, clock, step=250, steps_before=200, val_every=0, sample_every=0)
    assert steps == 250 + int((60 - 6 - 20) / 0.1)


def test_there_is_always_one_more_step(still: StillTime) -> None:
    clock = clock_after(still, 500.0, step=(5, 100.0))
    assert steps_that_fit(1.0, clock, step=5, steps_before=0, val_every=1, sample_every=1) == 6
