import numpy as np
import pytest
from support.devices import Device

from cupygpt.ops.loss_mean import loss_mean


@pytest.mark.parametrize("N", [1, 33, 3000])
def test_loss_mean(dev: Device, rng: np.random.Generator, N: int) -> None:
    losses, mean = dev.input(5.0 + rng.standard_normal(N), "float32"), dev.output(1, "float32")
    loss_mean(mean, losses, 1.0 / N)
    want = dev.values(losses).mean(keepdims=True)
    dev.agree("mean", mean, want, want, N, "float32")
