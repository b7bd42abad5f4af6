"""The CUDA device: memory, copies, events, graphs."""

from typing import Any

import numpy as np
import pytest
from support.gpu import require_gpu

from cupygpt.errors import DeviceError, KernelError

pytestmark = pytest.mark.gpu


@pytest.mark.gpu_alone
def test_zeros_come_straight_from_the_driver() -> None:
    device = require_gpu()
    before = device.used_bytes()
    array = device.zeros(100 << 20, np.uint8)
    assert 100 << 20 <= device.used_bytes() - before <= 102 << 20
    assert not device.download(array).any()
    del array
    assert device.used_bytes() - before < 2 << 20


def test_too_much_memory_is_refused_with_the_figures() -> None:
    device = require_gpu()
    with pytest.raises(DeviceError, match=r"16384\.00 GiB of GPU memory .* GiB are free"):
        device.zeros(1 << 42, np.float32)


@pytest.mark.parametrize("size", [1, 1000, 5 << 20], ids=["one", "small", "many chunks"])
def test_upload_and_download(size: int) -> None:
    device = require_gpu()
    target = device.zeros(size, np.float32)
    source = np.random.default_rng(0).standard_normal(size)
    want = source.astype(np.float32)
    device.upload(target, source)  # float64 is rounded on the way, as on the CPU
    source[...] = 0  # the values are in pinned memory by now
    assert (device.download(target) == want).all()


def test_uploads_keep_their_order_when_the_ring_wraps() -> None:
    device = require_gpu()
    targets = [device.zeros(3 << 20, np.uint8) for _ in range(30)]
    for number, target in enumerate(targets):
        device.upload(target, np.full(3 << 20, number, np.uint8))
    assert [set(np.unique(device.download(t))) for t in targets] == [{n} for n in range(30)]


def test_upload_takes_strided_sources_of_any_shape() -> None:
    device = require_gpu()
    target = device.zeros(6, np.int32).reshape(2, 3)
    device.upload(target, np.arange(6, dtype=np.int32).reshape(3, 2).T)
    assert device.download(target).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_upload_refuses_to_turn_floats_into_integers() -> None:
    device = require_gpu()
    with pytest.raises(TypeError, match="same_kind"):
        device.upload(device.zeros(2, np.uint16), np.array([1.5, 2.5]))


def test_read_later_gives_the_values_at_the_time_of_the_call() -> None:
    device = require_gpu()
    array = device.zeros(1000, np.float32)
    array.fill(1)
    first = device.read_later(array)
    array.fill(2)
    second = device.read_later(array)
    device.synchronize()
    assert first.ready()
    assert second.ready()
    assert 0 < device.elapsed_ms(first.event, second.event) < 1000
    assert set(first.value()) == {1.0}
    assert set(second.value()) == {2.0}


def test_events_measure_time_on_the_stream() -> None:
    device = require_gpu()
    array = device.zeros(64 << 20, np.float32)
    start = device.record()
    array.fill(1)
    stop = device.record()
    assert 0.01 < device.elapsed_ms(start, stop) < 1000


def test_a_graph_replays_what_was_captured() -> None:
    device = require_gpu()
    array = device.zeros(4, np.float32)

    def add_one() -> None:
        np.add(array, 1, out=array)

    add_one()  # CuPy compiles its kernel
    graph = device.capture(add_one)
    assert device.download(array)[0] == 1, "capturing ran the work"
    for _ in range(3):
        graph.launch()
    assert device.download(array).tolist() == [4, 4, 4, 4]


def test_an_error_while_capturing_leaves_the_stream_usable() -> None:
    device = require_gpu()
    array = device.zeros(4, np.float32)

    def fail() -> None:
        raise ValueError("from inside")

    with pytest.raises(ValueError, match="from inside"):
        device.capture(fail)
    array.fill(3)
    assert device.download(array)[0] == 3


def test_an_upload_cannot_be_captured() -> None:
    device = require_gpu()
    array = device.zeros(4, np.float32)
    with pytest.raises(KernelError, match="upload before it"):
        device.capture(lambda: device.upload(array, np.zeros(4, np.float32)))


def test_description_names_gpu_capability_memory_and_cupy() -> None:
    device = require_gpu()
    major, minor = device.compute_capability
    text = device.describe()
    for part in (device.gpu_name(), f"compute capability {major}.{minor}", "GiB", "CuPy"):
        assert part in text


@pytest.mark.gpu_alone
def test_free_memory_falls_by_what_is_taken() -> None:
    device = require_gpu()
    before = device.free_bytes()
    array: Any = device.zeros(64 << 20, np.uint8)
    assert before - device.free_bytes() >= array.nbytes
