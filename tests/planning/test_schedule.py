import pytest

from cupygpt.planning.schedule import Schedule


@pytest.mark.parametrize(
    ("kind", "step", "rate"),
    [
        ("cosine", 55, 3.3e-4),
        ("cosine", 80, 1.231680e-4),
        ("cosine", 99, 6.016448e-5),
        ("linear", 55, 3.3e-4),
        ("linear", 80, 1.8e-4),
        ("linear", 99, 6.6e-5),
        ("wsd", 55, 6e-4),
        ("wsd", 80, 6e-4),
        ("wsd", 99, 7.367312e-5),
        ("constant", 0, 6e-4),
        ("cosine", 0, 6e-5),
        ("cosine", 9, 6e-4),
    ],
)
def test_rates_equal_llmc(kind: str, step: int, rate: float) -> None:
    schedule = Schedule(kind, peak=6e-4, warmup=10, total=100, final_fraction=0.1)
    assert schedule(step) == pytest.approx(rate, rel=1e-6)


def test_warmup_as_long_as_the_run_is_all_warmup() -> None:
    schedule = Schedule("cosine", peak=1.0, warmup=4, total=4, final_fraction=0.0)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_an_extension_rises_to_half_of_the_peak_and_falls_to_the_same_end(kind: str) -> None:
    ended = Schedule(kind, peak=1.0, warmup=5, total=50, final_fraction=0.1)
    extended = Schedule(kind, 1.0, 5, 50, 0.1, extensions=(20, 100))
    assert [extended(step) for step in range(50)] == [ended(step) for step in range(50)]
    for start, length in ((50, 20), (70, 100)):
        rates = [extended(start + step) for step in range(length)]
        top = length // 10
        assert rates[:top] == sorted(rates[:top])
        assert rates[0] == pytest.approx(0.1 + 0.4 / top)
        assert max(rates) == rates[top - 1] == rates[top] == 0.5
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert 0.1 < rates[-1] < 0.2
    assert len({round(extended(step), 12) for step in (50, 70)}) == 2  # two courses, not one


@pytest.mark.parametrize(
    "schedule",
    [Schedule("constant", 0.3, 0, 50, 1.0, (10,)), Schedule("cosine", 0.3, 0, 50, 1.0, (10,))],
)
def test_an_extension_keeps_a_rate_that_does_not_decay(schedule: Schedule) -> None:
    assert {schedule(step) for step in range(60)} == {0.3}


def test_an_extension_of_a_decay_to_zero_is_trained() -> None:
    schedule = Schedule("cosine", 1.0, 0, 50, 0.0, (3,))
    assert schedule(49) < 0.01
    assert schedule(50) == 0.5
