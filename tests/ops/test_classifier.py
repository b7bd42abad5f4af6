import numpy as np
import pytest
from support.devices import STARTED_AT, Device, twice

from cupygpt.lab import oracle
from cupygpt.ops.classifier import classifier

# (N, V, Vp): padding, none, an odd vocabulary, hardly any real column.
SHAPES = [(3, 65, 128), (2, 128, 128), (70, 257, 384), (2, 2, 128)]
DLOSS = 1.0 / 96


def check(dev: Device, rng: np.random.Generator, N: int, V: int, Vp: int, *, train: bool) -> None:
    stored = 4.0 * rng.standard_normal((N, Vp))
    stored[:, V:] = 1e6  # padding must not count, whatever it holds
    stored[0, :V] += 100.0
    targets = rng.integers(0, V, N)
    targets[0], targets[-1] = V - 1, 0
    if N > 2:
        targets[1] = -1
    # Evaluation on the CPU overwrites the logits; its kernel only reads them.
    logits = dev.input(stored) if not train and dev.name != "cpu" else dev.array(stored)
    values = dev.values(logits)
    losses = dev.accumulated(N, "float32")
    classifier(losses, logits, dev.input(targets, "int32"), V, DLOSS if train else None)
    want, plain = twice(lambda x: oracle.classifier(x, targets, V, DLOSS), values)
    dev.agree(
        "losses", losses, STARTED_AT + want[0], np.float32(STARTED_AT) + plain[0], V, "float32"
    )
    if train:
        dev.agree("dlogits", logits, want[1], plain[1], V)
        ignored = np.flatnonzero(targets < 0)
        assert not dev.values(logits)[:, V:].any()
        assert not dev.values(logits)[ignored].any()


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("shape", SHAPES)
def test_classifier(
    dev: Device,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    train: bool,
) -> None:
    check(dev, rng, *shape, train=train)


def test_classifier_with_the_vocabulary_of_gpt2(dev: Device, rng: np.random.Generator) -> None:
    with dev.unchecked():
        check(dev, rng, 2, 50257, 50304, train=True)


def test_rising_logits(dev: Device) -> None:
    """The running maximum is raised at every step."""
    values = np.linspace(-200.0, 200.0, 256)[None]
    logits, losses = dev.array(values), dev.accumulated(1, "float32")
    values = dev.values(logits)
    classifier(losses, logits, dev.input([255], "int32"), 256, 1.0)
    want, plain = twice(lambda x: oracle.classifier(x, np.array([255]), 256, 1.0), values)
    dev.agree("dlogits", logits, want[1], plain[1], 256)
    dev.agree("losses", losses, STARTED_AT + want[0], 3 + plain[0], 256, "float32")


def test_nan_logits_give_a_nan_loss(dev: Device) -> None:
    """Otherwise a run that went wrong would continue."""
    values = np.zeros((1, 128))
    values[0, 77] = np.nan
    logits, losses = dev.array(values), dev.accumulated(1, "float32")
    classifier(losses, logits, dev.input([3], "int32"), 100, 1.0)
    assert np.isnan(dev.values(losses)).all()
