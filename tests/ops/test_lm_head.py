"""Both forms of the language-model head, with and without stored logits, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from support.devices import DEVICES, STARTED_AT, Device
from support.gpu import require_gpu

from cupygpt.lab import oracle
from cupygpt.lab.tolerance import EPSILON, assert_close, limit
from cupygpt.ops import lm_head as lm_head_module
from cupygpt.ops.lm_head import STATISTICS_PER_ROW, lm_head

BFLOAT16_DEVICES = [d for d in DEVICES if d.values[0][1] == "bfloat16"]
DLOSS = 1.0 / 96


@contextmanager
def fused(dev: Device) -> Iterator[None]:
    """Use the kernels with wgmma; skips the test on a GPU that has none."""
    if dev.name == "cuda" and require_gpu().compute_capability != (9, 0):
        pytest.skip("wgmma needs compute capability 9.0")
    with patch.object(lm_head_module, "is_hopper", lambda array: True):
        yield


def check(
    dev: Device, rng: np.random.Generator, N: int, C: int, V: int, *, train: bool = True
) -> None:
    Vp = -(-V // 128) * 128
    weights = 0.3 * rng.standard_normal((Vp, C))
    weights[V:] = 1e4  # padding must not count, whatever it holds
    inp, wte = dev.input(rng.standard_normal((N, C))), dev.input(weights)
    targets = rng.integers(0, V, N)
    targets[0], targets[-1] = V - 1, 0
    if N > 2:
        targets[1] = -1
    losses, dlogits = dev.accumulated(N, "float32"), dev.output((N, Vp))
    statistics = dev.output(STATISTICS_PER_ROW * N, "float32")
    lm_head(
        losses, dlogits, inp, wte, dev.input(targets, "int32"), V, DLOSS if train else None,
        statistics, precision=dev.precision,
    )  # fmt: skip
    want = oracle.classifier(dev.values(inp) @ dev.values(wte).T, targets, V, DLOSS)
    start = np.float32(STARTED_AT)
    largest = np.abs(dev.values(inp) @ dev.values(wte)[:V].T).max()
    # A logit and the sum of the exps; stored logits are rounded before the softmax.
    allowed = limit("float32", 4 * C + V, largest, relative=EPSILON[dev.floatX])
    assert_close("losses", dev.values(losses) - start, want[0], allowed)
    if not train:
        return
    got = dev.values(dlogits)
    assert_close("dlogits", got, want[1], (allowed + EPSILON[dev.floatX]) * DLOSS)
    assert not got[:, V:].any()
    assert not got[targets < 0].any()


# (N, C, V): one row and pair of tiles; a second warpgroup and a padded vocabulary; a second block
# of rows, stages filled a second time, 64 channels.
SHAPES = [(1, 128, 128), (70, 128, 300), (197, 64, 1411), (64, 24, 65)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
def test_lm_head(
    dev: Device, rng: np.random.Generator, shape: tuple[int, int, int], train: bool
) -> None:
    with dev.unchecked():
        check(dev, rng, *shape, train=train)


@pytest.mark.parametrize("dev", BFLOAT16_DEVICES, indirect=True)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_fused_lm_head(dev: Device, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    with fused(dev):
        check(dev, rng, *shape)


@pytest.mark.parametrize("dev", BFLOAT16_DEVICES, indirect=True)
def test_fused_evaluation(dev: Device, rng: np.random.Generator) -> None:
    with fused(dev):
        check(dev, rng, 70, 128, 300, train=False)


@pytest.mark.gpu
@pytest.mark.parametrize("dev", BFLOAT16_DEVICES, indirect=True)
def test_fused_lm_head_at_the_size_of_a_run(dev: Device, rng: np.random.Generator) -> None:
    if dev.name != "cuda":
        pytest.skip("too much for the emulator")
    with fused(dev):
        check(dev, rng, 1000, 128, 50257)
