"""The mean of the losses of all tokens."""

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.cpu_threads import on_host
from cupygpt.kernels.kernel import Kernel
from cupygpt.kernels.launch import Launch

THREADS = 1024

_loss_mean = Kernel("loss_mean.cu", "loss_mean", "mean:f32* losses:f32* N:i32 scale:f32")


def loss_mean(mean: Array, losses: Array, scale: float) -> None:
    """mean[0] = scale * sum(losses), added in a fixed order.

    Written: mean (1,) float32. Read: losses (N,) float32.
    """
    if on_host(mean):
        mean[0] = losses.sum(dtype=np.float64) * scale
        return
    _loss_mean(mean, losses, len(losses), scale, launch=Launch(1, THREADS))
