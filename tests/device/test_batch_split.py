"""Parts of a batch at once: sums in the order of the parts, and no part left waiting."""

import threading
import time
from functools import partial

import numpy as np
import pytest

from cupygpt.device.batch_split import accumulate, num_slices, run_slices
from cupygpt.device.cpu_threads import for_blocks


def test_accumulate_alone_adds() -> None:
    total, count = np.ones(3), np.zeros(1)
    accumulate((total, np.full(3, 2.0)), (count, np.ones(1)))
    assert total.tolist() == [3, 3, 3]
    assert count.tolist() == [1]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_sums_have_the_same_bits_whatever_part_is_slow(slow: int) -> None:
    addends = np.float32([1e8, -1e8, 1.5])
    total = np.full(1, 0.25, np.float32)

    def part(number: int) -> None:
        if number == slow:
            time.sleep(0.02)
        accumulate((total, addends[number : number + 1]))

    run_slices([partial(part, number) for number in range(3)])
    expected = np.float32(0.25)
    for addend in addends:
        expected += addend
    assert total[0] == expected


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_a_part_ends_all(failing: int) -> None:
    total = np.zeros(1)

    def part(number: int) -> None:
        accumulate((total, np.ones(1)))
        if number == failing:
            raise ValueError(f"part {number}")
        accumulate((total, np.ones(1)))

    with pytest.raises(ValueError, match=f"part {failing}"):
        run_slices([partial(part, number) for number in range(3)])
    run_slices([partial(accumulate, (total, np.ones(1)))] * 3)


def test_blocks_inside_a_part_stay_on_its_thread() -> None:
    threads: list[set[str]] = [set(), set()]

    def part(number: int) -> None:
        note = threads[number].add
        for_blocks(lambda start, stop: note(threading.current_thread().name), 8, 1)

    run_slices([partial(part, number) for number in range(2)])
    assert [len(names) for names in threads] == [1, 1]
    assert threads[0] != threads[1]


def test_a_batch_has_no_more_parts_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupygpt.device.batch_split.num_cores", lambda: 4)
    assert num_slices(np.zeros((8, 2))) == 4
    assert num_slices(np.zeros((3, 2))) == 3
    assert num_slices(np.zeros((3, 2)).view(type("Elsewhere", (np.ndarray,), {}))) == 1
