import pytest

from cupygpt.training.schedule import Schedule


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
