"""The devices that op tests run on: one test body, three kinds of arrays, two storage types.

A test gets its arrays from the `dev` fixture: `dev.input` remembers what it handed out, and the
fixture checks after the test that it came back unchanged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.device.precision import BF16, FP32
from cupygpt.emulator.arrays import EmulatedArray, emulated, unwritten
from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.emulate import load, loader
from cupygpt.kernels.kernel import forget_compiled
from cupygpt.kernels.load import register_loader
from cupygpt.lab.tolerance import assert_close, limit
from support.emulated_gpu import run_on_emulator
from support.gpu import require_cupy, require_gpu

STARTED_AT = 3.0
"""What accumulated outputs hold before the call."""


class Device:
    """NumPy arrays: the CPU device. `floatX` is the storage type of its activations and weights."""

    name = "cpu"

    def __init__(self, floatX: str) -> None:
        self.floatX = floatX
        self.precision = FP32 if floatX == "float32" else BF16
        self._inputs: list[tuple[Any, np.ndarray]] = []

    def put(self, host: np.ndarray) -> Any:
        return host.copy()

    def get(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """An array of `dtype` (floatX if None) for an argument that the op may change."""
        dtype = dtype or self.floatX
        host = np.asarray(values)
        return self.put(to_bfloat16(host) if dtype == "bfloat16" else host.astype(dtype))

    def input(self, values: Any, dtype: str | None = None) -> Any:
        """An array that the op must leave as it is."""
        array = self.array(values, dtype)
        self._inputs.append((array, self.get(array).copy()))
        return array

    def output(self, shape: int | tuple[int, ...], dtype: str | None = None) -> Any:
        """For a written output: an element that the op misses is reported as never written."""
        dtype = dtype or self.floatX
        return self.put(unwritten(shape, "uint16" if dtype == "bfloat16" else dtype))

    def accumulated(self, shape: int | tuple[int, ...], dtype: str | None = None) -> Any:
        """For an accumulated output: STARTED_AT everywhere."""
        return self.array(np.full(shape, STARTED_AT), dtype)

    def values(self, array: Any) -> np.ndarray:
        """What an array holds, bfloat16 decoded, in float64."""
        host = self.get(array)
        return (from_bfloat16(host) if host.dtype == np.uint16 else host).astype(np.float64)

    def check_inputs(self) -> None:
        for number, (array, before) in enumerate(self._inputs):
            after = self.get(array)
            assert after.tobytes() == before.tobytes(), f"the op changed its input {number}"

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Inside this context the emulator checks no accesses: for large arrays."""
        yield

    def agree(
        self,
        name: str,
        got: Any,
        want: np.ndarray,
        plain: np.ndarray,
        n: int,
        dtype: str = "",
        *,
        size: float | None = None,
        relative: float = 0.0,
    ) -> None:
        """Assert that `got` is as near to `want` as storage and sums of n terms explain.

        `want` is the oracle in float64, `plain` the oracle in float32, both from the inputs as
        stored. `size` is the largest absolute value of the terms, by default that of `want`;
        `relative` is a further relative error of theirs. tolerance.py has the rule.
        """
        dtype = dtype or self.floatX
        stored = round_to(plain, dtype)
        assert want.shape == stored.shape, (want.shape, stored.shape)
        allowed = limit(
            dtype,
            n,
            np.abs(want).max() if size is None else size,
            plain_error=np.abs(stored - want).max(),
            relative=relative,
        )
        assert_close(f"{name} on {self.name} {dtype}", self.values(got), want, allowed)


class EmulatedDevice(Device):
    """The kernels, run by the emulator under its checker."""

    name = "emulated"

    def put(self, host: np.ndarray) -> Any:
        return emulated(host)

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        register_loader(
            EmulatedArray, lambda path, options: load(path, options, mode=Mode.UNCHECKED)
        )
        forget_compiled()
        try:
            yield
        finally:
            register_loader(EmulatedArray, loader)
            forget_compiled()


class CUDADevice(Device):
    """The kernels on a GPU."""

    name = "cuda"

    def put(self, host: np.ndarray) -> Any:
        return require_cupy().asarray(host)

    def get(self, array: Any) -> np.ndarray:
        return np.asarray(require_cupy().asnumpy(array))


def twice(function: Callable[..., Any], *arrays: np.ndarray) -> tuple[Any, Any]:
    """An oracle's answer in float64 (`want`) and in float32 (`plain`), from the same inputs."""
    return function(*arrays), function(*(a.astype(np.float32) for a in arrays))


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """values as an array of `dtype` would hold them, in float64."""
    single = np.asarray(values).astype(np.float32)
    return (from_bfloat16(to_bfloat16(single)) if dtype == "bfloat16" else single).astype(float)


def make_device(name: str, floatX: str) -> Device:
    """A device by name; skips the test, with the reason, if it cannot run here."""
    if name == "cpu":
        return Device(floatX)
    if name == "cuda":
        require_gpu()
        return CUDADevice(floatX)
    run_on_emulator(EmulatedArray)
    return EmulatedDevice(floatX)


# bfloat16 exists only where kernels run: NumPy has no such type.
DEVICES = [
    pytest.param(("cpu", "float32"), id="cpu"),
    pytest.param(("emulated", "float32"), id="emulated"),
    pytest.param(("emulated", "bfloat16"), id="emulated-bf16"),
    pytest.param(("cuda", "float32"), id="cuda", marks=pytest.mark.gpu),
    pytest.param(("cuda", "bfloat16"), id="cuda-bf16", marks=pytest.mark.gpu),
]

PARALLEL_DEVICES = [device for device in DEVICES if "emulated" not in device.values[0]]
"""Those on which two runs of an op can differ: the emulator runs one thread after another."""
