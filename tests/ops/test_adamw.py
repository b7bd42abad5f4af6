from functools import partial
from typing import Any

import numpy as np
import pytest
from support.devices import Device, round_to, twice

from cupygpt.config import GPTConfig
from cupygpt.errors import KernelError
from cupygpt.lab import oracle
from cupygpt.lab.tolerance import EPSILON
from cupygpt.model.tensors import decay_segments, parameter_specs
from cupygpt.ops.adamw import AFTER_ALL, MAX_CHANGES, _decay_changes, adamw

SETTINGS = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "grad_clip": 1.0}


def weights(dev: Device, values: np.ndarray) -> tuple[Any, Any]:
    """Parameters and, for bfloat16, the float32 numbers they are rounded from."""
    return dev.array(values), dev.array(values, "float32") if dev.floatX == "bfloat16" else None


def check(
    dev: Device,
    rng: np.random.Generator,
    segments: list[tuple[int, int, bool]],
    norm: float,
    step: int = 3,
    **changes: float,
) -> None:
    settings, rate, size = SETTINGS | changes, 1e-2, segments[-1][1]
    params, master = weights(dev, rng.standard_normal(size))
    grads = dev.input(rng.standard_normal(size), "float32")
    m = dev.array(0.1 * rng.standard_normal(size), "float32")
    v = dev.array(0.1 * rng.random(size), "float32")
    controls = [rate, 1.0 - settings["beta1"] ** step, 1.0 - settings["beta2"] ** step]
    decays = np.zeros(size)
    for start, stop, decay in segments:
        decays[start:stop] = decay
    update = partial(oracle.adamw, grad_norm=norm, lr=rate, step=step, **settings)
    want, plain = twice(
        update,
        *(dev.values(x) for x in (params if master is None else master, m, v, grads)),
        decays,
    )
    adamw(
        params, m, v, grads, dev.input([norm], "float32"), dev.input(controls, "float32"),
        segments, **settings, master=master,
    )  # fmt: skip
    dev.agree("m", m, want[1], plain[1], 2, "float32")
    dev.agree("v", v, want[2], plain[2], 2, "float32")
    dev.agree("params", params, want[0], plain[0], 2)
    if master is not None:
        dev.agree("master", master, want[0], plain[0], 2, "float32")
        np.testing.assert_array_equal(dev.values(params), round_to(dev.values(master), "bfloat16"))


@pytest.mark.parametrize("norm", [0.5, 4.0], ids=["unclipped", "clipped"])
def test_segments_of_a_model(dev: Device, rng: np.random.Generator, norm: float) -> None:
    segments = decay_segments(parameter_specs(GPTConfig(maxT=3, V=65, L=2, NH=1, C=8)))
    check(dev, rng, segments, norm)


@pytest.mark.parametrize("decay", [True, False])
def test_one_segment(dev: Device, rng: np.random.Generator, decay: bool) -> None:
    check(dev, rng, [(0, 2056, decay)], 4.0)


@pytest.mark.parametrize(
    "changes", [{"grad_clip": 0.0}, {"weight_decay": 0.0}, {"beta2": 0.999}], ids=str
)
def test_settings(dev: Device, rng: np.random.Generator, changes: dict[str, float]) -> None:
    check(dev, rng, [(0, 24, True), (24, 40, False)], 4.0, **changes)


def test_first_step_from_zero_moments(dev: Device, rng: np.random.Generator) -> None:
    """The corrections turn the first update into the sign of the gradient."""
    params, master = weights(dev, np.zeros(24))
    grads = dev.input(rng.standard_normal(24), "float32")
    m, v = dev.array(np.zeros(24), "float32"), dev.array(np.zeros(24), "float32")
    controls = dev.input([1e-2, 1.0 - 0.9, 1.0 - 0.95], "float32")
    adamw(
        params, m, v, grads, dev.input([0.5], "float32"), controls, [(0, 24, True)], **SETTINGS,
        master=master,
    )  # fmt: skip
    gradients = dev.values(grads)
    want = -1e-2 * gradients / (np.abs(gradients) + 1e-8)
    np.testing.assert_allclose(dev.values(params), want, rtol=EPSILON[dev.floatX] + 2e-6)


def test_stochastic_rounding_keeps_small_updates(dev: Device) -> None:
    """Without master weights an update of a tenth of a bfloat16's last place is made in a tenth
    of all cases; rounding to nearest would never make it."""
    if dev.floatX != "bfloat16":
        pytest.skip("float32 parameters are stored as they are")
    size, rate = 1 << 14, 0.1 * 2.0**-8
    ones = dev.input(np.ones(size), "float32")
    stored = []
    for step in (1, 1, 2):
        params = dev.array(np.ones(size))
        m, v = dev.array(np.zeros(size), "float32"), dev.array(np.zeros(size), "float32")
        adamw(
            params, m, v, ones, dev.input([1.0], "float32"),
            dev.input([rate, 0.1, 0.05], "float32"), [(0, size, False)], **SETTINGS,
            rng_state=dev.input([7, 0, step, 0], "uint32"),
        )  # fmt: skip
        stored.append(dev.values(params))
    assert set(np.unique(stored[0])) <= {1.0 - 2.0**-8 * k for k in range(3)}
    error = 2.0**-8 / np.sqrt(size)  # of the mean of so many roundings, at most half of this
    assert abs(stored[0].mean() - (1.0 - rate)) < 3 * error
    np.testing.assert_array_equal(stored[0], stored[1])
    assert (stored[0] != stored[2]).any()


def test_a_part_is_rounded_as_within_the_whole(dev: Device) -> None:
    """`rng_offset` says where the part begins, so that ranks can share an update (ZeRO-1)."""
    if dev.floatX != "bfloat16":
        pytest.skip("float32 parameters are stored as they are")
    size, rate = 512, 0.3 * 2.0**-8

    def update(start: int, stop: int) -> np.ndarray:
        count = stop - start
        params = dev.array(np.ones(count))
        m, v = dev.array(np.zeros(count), "float32"), dev.array(np.zeros(count), "float32")
        adamw(
            params, m, v, dev.input(np.ones(count), "float32"), dev.input([1.0], "float32"),
            dev.input([rate, 0.1, 0.05], "float32"), [(0, count, False)], **SETTINGS,
            rng_state=dev.input([7, 0, 1, 0], "uint32"), rng_offset=start,
        )  # fmt: skip
        return dev.values(params)

    parts = np.concatenate([update(0, 200), update(200, size)])
    np.testing.assert_array_equal(parts, update(0, size))
    assert (update(0, 200) != update(200, 400)).any()


def test_bfloat16_without_master_weights_or_random_numbers_is_refused(dev: Device) -> None:
    if dev.floatX != "bfloat16":
        pytest.skip("float32 parameters are their own master")
    params, x = dev.array(np.zeros(8)), dev.array(np.zeros(8), "float32")
    with pytest.raises(KernelError, match="master weights or rng_state"):
        adamw(params, x, x, x, x, x, [(0, 8, True)], **SETTINGS)


def test_changes_of_decay() -> None:
    segments = [(0, 8, False), (8, 24, True), (24, 32, True), (32, 40, False)]
    changes = _decay_changes(segments)["at"]
    assert changes.tolist() == [8, 32] + (MAX_CHANGES - 2) * [AFTER_ALL]


@pytest.mark.parametrize(
    "segments",
    [[(0, 4, True), (4, 8, False)], [(8 * i, 8 * i + 8, i % 2 == 0) for i in range(17)]],
    ids=["inside a pack", "too many"],
)
def test_segments_that_the_kernel_cannot_take(segments: list[tuple[int, int, bool]]) -> None:
    with pytest.raises(KernelError, match="weight decay changes at"):
        _decay_changes(segments)
