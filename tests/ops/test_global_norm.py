import numpy as np
import pytest
from support.devices import Device

from cupygpt.ops.global_norm import MAX_PARTIALS, global_norm


@pytest.mark.parametrize("size", [8, 4104, 50000, 8 * MAX_PARTIALS * 256])
def test_global_norm(dev: Device, rng: np.random.Generator, size: int) -> None:
    """From one pack to more than one round of all threads."""
    with dev.unchecked():
        grads = dev.input(rng.standard_normal(size), "float32")
        norm = dev.output(1, "float32")
        global_norm(norm, grads, dev.output(MAX_PARTIALS, "float32"))
        want = np.sqrt((dev.values(grads) ** 2).sum(keepdims=True))
        dev.agree("norm", norm, want, want, size, "float32")


def test_small_size_under_the_checker(dev: Device, rng: np.random.Generator) -> None:
    grads, norm = dev.input(rng.standard_normal(9000), "float32"), dev.output(1, "float32")
    global_norm(norm, grads, dev.output(MAX_PARTIALS, "float32"))
    want = np.sqrt((dev.values(grads) ** 2).sum(keepdims=True))
    dev.agree("norm", norm, want, want, 9000, "float32")


def test_zero_gradients(dev: Device) -> None:
    norm = dev.output(1, "float32")
    global_norm(norm, dev.input(np.zeros(64), "float32"), dev.output(MAX_PARTIALS, "float32"))
    assert dev.values(norm).tolist() == [0.0]
