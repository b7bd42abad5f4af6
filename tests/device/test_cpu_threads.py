"""Work in blocks on all cores: each index once, errors are raised, no thread stays behind."""

import threading

import numpy as np
import pytest
from support.cores import cores_of_worker

from cupygpt.device import cpu_threads
from cupygpt.device.cpu_threads import for_blocks, share


@pytest.fixture(params=[1, 2, 5])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cpu_threads, "num_cores", lambda: request.param)
    return int(request.param)


@pytest.mark.parametrize(("total", "block"), [(0, 3), (1, 3), (3, 3), (10, 3), (100, 7), (5, 100)])
def test_every_index_is_worked_on_once(cores: int, total: int, block: int) -> None:
    seen = np.zeros(total, int)
    sizes = []

    def work(start: int, stop: int) -> None:
        seen[start:stop] += 1
        sizes.append(stop - start)

    for_blocks(work, total, block)
    assert (seen == 1).all()
    assert all(0 < size <= block for size in sizes)


def test_an_error_in_any_block_is_raised(cores: int) -> None:
    ended = []

    def work(start: int, stop: int) -> None:
        if start == 6:
            raise ValueError("block 6")
        ended.append(start)

    with pytest.raises(ValueError, match="block 6"):
        for_blocks(work, 10, 1)
    assert 0 in ended


def test_blocks_run_on_several_threads() -> None:
    if cpu_threads.num_cores() == 1:
        pytest.skip("one core: there is only this thread")
    meeting = threading.Barrier(2)
    for_blocks(lambda start, stop: meeting.wait(timeout=30) and None, 2, 1)


@pytest.mark.parametrize(("total", "least", "size"), [(10, 1, 5), (10, 8, 8), (0, 0, 1), (3, 0, 2)])
def test_share(monkeypatch: pytest.MonkeyPatch, total: int, least: int, size: int) -> None:
    monkeypatch.setattr(cpu_threads, "num_cores", lambda: 2)
    assert share(total, least) == size


@pytest.mark.parametrize(
    ("cores", "workers", "shares"),
    [
        (16, 4, [range(4), range(4, 8), range(8, 12), range(12, 16)]),
        (16, 12, [range(n, n + 2) for n in (0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6)]),
        (5, 2, [range(2), range(2, 4)]),
        (3, 2, [(0, 1), (2, 0)]),
        (2, 2, [(0, 1), (0, 1)]),
        (1, 2, [(0,), (0,)]),
        (8, 1, [range(8)]),
    ],
)
def test_each_worker_of_the_tests_has_its_share_of_the_cores(
    cores: int, workers: int, shares: list[range]
) -> None:
    names = [100 + core for core in range(cores)]  # a process may have any of the machine's cores
    chosen = [cores_of_worker(names, number, workers) for number in range(workers)]
    assert chosen == [[100 + core for core in share] for share in shares]


def test_a_worker_in_the_place_of_one_that_crashed_has_a_share() -> None:
    assert cores_of_worker(range(4), 3, workers=2) == [2, 3]
