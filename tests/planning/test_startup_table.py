import pytest

from cupygpt.planning.schedule import Schedule
from cupygpt.planning.startup_table import describe_lr


@pytest.mark.parametrize(
    ("kind", "warmup", "final_fraction", "shown"),
    [
        ("cosine", 0, 1.0, "learning rate 0.0003, constant"),
        ("constant", 0, 1.0, "learning rate 0.0003, constant"),
        ("constant", 50, 0.1, "learning rate 0.0003, constant"),  # it has neither
        ("cosine", 50, 1.0, "learning rate 0.0003 after 50 warm-up steps, constant"),
        ("cosine", 0, 0.1, "learning rate 0.0003, cosine to 3e-05"),
        ("wsd", 50, 0.0, "learning rate 0.0003 after 50 warm-up steps, wsd to 0"),
    ],
)
def test_the_course_of_the_learning_rate(
    kind: str, warmup: int, final_fraction: float, shown: str
) -> None:
    schedule = Schedule(kind, 3e-4, warmup, 1000, final_fraction)
    assert describe_lr(schedule) == shown
    rates = {schedule(step) for step in range(warmup, 1000)}
    assert (len(rates) == 1) == shown.endswith("constant")


def test_a_warm_up_that_is_still_open_has_no_number() -> None:
    schedule = Schedule("cosine", 1e-3, 71, 1000, 0.05)
    shown = describe_lr(schedule, "a tenth of the steps as warm-up")
    assert shown == "learning rate 0.001 after a tenth of the steps as warm-up, cosine to 5e-05"
