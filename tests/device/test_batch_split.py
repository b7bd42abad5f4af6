"""Batch slices in parallel: sums in the order of the slices, and no slice left waiting."""

import threading
import time
from functools import partial

import numpy as np
import pytest

from cupygpt.device.batch_split import accumulate, num_slices, run_slices
from cupygpt.device.cpu_threads import for_blocks


def test_accumulate_outside_of_slices_adds() -> None:
    total, count = np.ones(3), np.zeros(1)
    accumulate((total, np.full(3, 2.0)), (count, np.ones(1)))
    assert total.tolist() == [3, 3, 3]
    assert count.tolist() == [1]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_sums_have_the_same_bits_whatever_slice_is_slow(slow: int) -> None:
    addends = np.float32([1e8, -1e8, 1.5])
    total = np.full(1, 0.25, np.float32)

    def compute(index: int) -> None:
        if index == slow:
            time.sleep(0.02)
        accumulate((total, addends[index : index + 1]))

    run_slices([partial(compute, index) for index in range(3)])
    expected = np.float32(0.25)
    for addend in addends:
        expected += addend
    assert total[0] == expected


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_one_slice_ends_all(failing: int) -> None:
    total = np.zeros(1)

    def compute(index: int) -> None:
        accumulate((total, np.ones(1)))
        if index == failing:
            raise ValueError(f"slice {index}")
        accumulate((total, np.ones(1)))

    with pytest.raises(ValueError, match=f"slice {failing}"):
        run_slices([partial(compute, index) for index in range(3)])
    run_slices([partial(accumulate, (total, np.ones(1)))] * 3)


def test_blocks_inside_a_slice_stay_on_its_thread() -> None:
    threads: list[set[str]] = [set(), set()]

    def compute(index: int) -> None:
        note = threads[index].add
        for_blocks(lambda start, stop: note(threading.current_thread().name), 8, 1)

    run_slices([partial(compute, index) for index in range(2)])
    assert [len(names) for names in threads] == [1, 1]
    assert threads[0] != threads[1]


def test_a_batch_has_no_more_slices_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupygpt.device.batch_split.num_cores", lambda: 4)
    assert num_slices(np.zeros((8, 2))) == 4
    assert num_slices(np.zeros((3, 2))) == 3
    assert num_slices(np.zeros((3, 2)).view(type("Elsewhere", (np.ndarray,), {}))) == 1
