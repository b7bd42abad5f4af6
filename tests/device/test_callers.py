"""The program's CuPy stays as it was: its arrays, its current GPU and streams."""

import os
import signal
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.gpu import require_cupy

from cupygpt.device.callers import Turns, as_given, is_cupy, keeping_current, to_host, undisturbed
from cupygpt.device.cpu import CPU


class Stream:
    """A stream of a CuPy that is not there; the null stream belongs to no GPU."""

    null: "Stream"

    def __init__(self, cuda: "FakeCuda", device_id: int) -> None:
        self._cuda, self.device_id = cuda, device_id

    def use(self) -> None:
        number = self._cuda.number if self.device_id < 0 else self.device_id
        assert number == self._cuda.number
        self._cuda.streams[number] = self


class FakeCuda(SimpleNamespace):
    """cupy.cuda with two GPUs, as far as callers.py knows it. `used` lists the GPUs touched."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.used = 0, list[int]()
        Stream.null = Stream(self, -1)
        self.Stream = Stream
        self.streams = [Stream.null, Stream.null]
        self.runtime = SimpleNamespace(getDevice=lambda: self.number, getDeviceCount=lambda: 2)

    def is_available(self) -> bool:
        return True

    def get_current_stream(self, number: int) -> Stream:
        return self.streams[number]

    def Device(self, number: int) -> Any:
        def use() -> None:
            self.used.append(number)
            self.number = number

        return SimpleNamespace(use=use)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    module: Any = ModuleType("cupy")
    module.cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cupy", module)
    found: FakeCuda = module.cuda
    return found


def take(cuda: FakeCuda, number: int) -> None:
    """What a CUDA device does when it becomes the current one."""
    cuda.number = number
    cuda.streams[number] = Stream(cuda, number)


def test_gpu_and_streams_come_back(cuda: FakeCuda) -> None:
    take(cuda, 1)
    before = list(cuda.streams)
    with keeping_current():
        take(cuda, 0)
    assert cuda.number == 1
    assert cuda.streams == before
    assert cuda.used == [0, 1]


def test_a_gpu_that_was_not_used_is_not_touched(cuda: FakeCuda) -> None:
    with keeping_current():
        take(cuda, 0)
    assert cuda.used == [0, 0]
    assert cuda.streams == [Stream.null] * 2


def test_cupy_that_is_loaded_meanwhile_is_left_as_new(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["cupy"]
    monkeypatch.delitem(sys.modules, "cupy")
    with keeping_current():
        monkeypatch.setitem(sys.modules, "cupy", module)
        take(cuda, 1)
    assert cuda.number == 0
    assert cuda.streams == [Stream.null] * 2


def test_numpy_arrays_stay_what_they_are() -> None:
    array = np.arange(3)
    assert not is_cupy(array)
    assert to_host(array) is array
    assert as_given(array, [1, 2]) is array


@pytest.mark.gpu
def test_cupy_arrays_go_and_come_back() -> None:
    cupy = require_cupy()
    array = cupy.arange(3)
    assert is_cupy(array)
    assert (to_host(array) == np.arange(3)).all()
    assert is_cupy(as_given(np.arange(3), array))
    assert as_given(array, array) is array


def test_turns_activate_the_device() -> None:
    active: list[str] = []
    device = CPU()
    device.activate = lambda: active.append("activated")  # type: ignore[method-assign]
    turns = Turns(device)
    with turns.taken(), turns.taken():
        pass
    assert active == ["activated"] * 2


def test_ctrl_c_waits_for_the_end_of_a_call() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), Turns(CPU()).taken():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), undisturbed():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("second")
    assert reached == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_handles_ctrl_c_keeps_its_handler() -> None:
    seen = []
    previous = signal.signal(signal.SIGINT, lambda *_: seen.append("its own"))
    try:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGINT)
            assert seen == ["its own"]
    finally:
        signal.signal(signal.SIGINT, previous)
