"""What a Python program brings along: NumPy or CuPy arrays, its threads, its current stream."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from cupygpt.device.device import Device

Pause = Callable[[], None]
"""Raises KeyboardInterrupt if Ctrl-C has come."""


def is_cupy(array: Any) -> bool:
    """Whether the program works with CuPy: what comes in so goes out so."""
    return type(array).__module__.partition(".")[0] == "cupy"


def to_host(array: Any) -> Any:
    """A CuPy array as a NumPy array, once the program's own stream has computed it.

    Anything else stays as it is.
    """
    return array.get() if is_cupy(array) else array


def as_given(result: Any, given: Any) -> Any:
    """`result` as a CuPy array if `given` is one, else as it is."""
    if not is_cupy(given) or is_cupy(result):
        return result
    import cupy

    return cupy.asarray(np.asarray(result))


@contextmanager
def keeping_current() -> Iterator[None]:
    """After the block, the program's GPU and streams are CuPy's current ones again.

    A CUDA device makes its own current in the calling thread.
    """
    before = _current()
    try:
        yield
    finally:
        after = _current()
        if after is not None:
            _restore(before or (0, [sys.modules["cupy"].cuda.Stream.null] * len(after[1])), after)


@contextmanager
def undisturbed() -> Iterator[Pause]:
    """Ctrl-C in the block is raised after it: what others read is never half computed.

    A long block calls what it is given wherever nothing is half computed: Ctrl-C is raised there. A
    second one is raised at once. On other threads, and where the program handles SIGINT itself,
    nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    received = False

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    def pause() -> None:
        if received:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield pause
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    pause()


class Turns:
    """The threads of a program use a device one after the other, each for a whole call."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._lock = threading.RLock()

    @contextmanager
    def taken(self) -> Iterator[Pause]:
        """Inside, this thread alone uses the device, and works on it, `undisturbed`."""
        with undisturbed() as pause, self._lock, keeping_current():
            self.device.activate()
            yield pause


def _current() -> tuple[int, list[Any]] | None:
    """The number of the GPU, and the stream of each; None without CuPy, or without a GPU."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not cupy.cuda.is_available():
        return None
    count = cupy.cuda.runtime.getDeviceCount()
    streams = [cupy.cuda.get_current_stream(number) for number in range(count)]
    return cupy.cuda.runtime.getDevice(), streams


def _restore(before: tuple[int, list[Any]], after: tuple[int, list[Any]]) -> None:
    cupy = sys.modules["cupy"]
    for number, (old, new) in enumerate(zip(before[1], after[1], strict=True)):
        if old is not new:  # another GPU is not touched: that alone would take memory of it
            cupy.cuda.Device(number).use()
            old.use()
    cupy.cuda.Device(before[0]).use()
