"""Fixtures of all tests, and those of the op tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import cupygpt  # noqa: F401  # isort: skip - before NumPy: see there
import numpy as np
import pytest
from support.cache import cache_folder
from support.cores import cores_of_worker
from support.devices import DEVICES, Device, make_device
from support.gpu import turn_on_the_gpu

from cupygpt.device.cpu_threads import num_cores

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Tests start Python hundreds of times, and each time it would compile all modules again.
    os.environ["PYTHONPYCACHEPREFIX"] = str(cache_folder("bytecode"))

MOST_WORKERS = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs in one process for each core, up to four.

    A choice of tests runs in this process, so that it starts at once and `-s` shows its output.
    """
    folder = Path(__file__).parent
    whole = [Path(argument).resolve() for argument in config.args] == [folder]
    some = config.option.markexpr != "not slow" or config.option.keyword
    return min(num_cores(), MOST_WORKERS) if whole and not some else 0


def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist, and what its tests start, computes on its share of the cores.

    Ops start a thread for each core: all workers with all cores would wait for each other.
    """
    worker = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores, number = sorted(os.sched_getaffinity(0)), int(worker["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, cores_of_worker(cores, number, worker["workercount"]))


@pytest.fixture(params=DEVICES)
def dev(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Each device with each of its storage types; afterwards inputs must be as they were."""
    device = make_device(*request.param)
    with np.errstate(over="ignore"):  # as in a step: exp may overflow to infinity
        yield device
    device.check_inputs()


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """fsync matters when the power fails; tests that look for it put their own in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _turn_on_the_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests on a GPU wait while another one measures its memory."""
    markers = {marker.name for marker in request.node.iter_markers()}
    if markers & {"gpu", "multi_gpu"}:
        with turn_on_the_gpu(alone="gpu_alone" in markers):
            yield
    else:
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(7)
