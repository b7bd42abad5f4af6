"""The whole model in float64: its gradient against central differences, and its options."""

import gc
import weakref

import numpy as np
import pytest

from cupygpt.config import GPTConfig
from cupygpt.data.loader import pack, token_order
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32, FP64, Precision
from cupygpt.model import gpt as model
from cupygpt.model.init_weights import initialize
from cupygpt.model.memory_plan import RunShape
from cupygpt.model.tensors import cut_packed, parameter_specs
from cupygpt.training.trainer import OptimizerSettings, Trainer

CONFIG = GPTConfig(maxT=16, V=65, L=2, NH=2, C=32)
B, T = 3, 13


def make_trainer(precision: Precision = FP64, **options: float) -> Trainer:
    recompute = int(options.pop("recompute", 0))
    shape = RunShape(CONFIG, B, T, recompute=recompute, precision=precision)
    trainer = Trainer(CPU(), shape, OptimizerSettings(), **options)  # type: ignore[arg-type]
    initialize(trainer.params, CONFIG, 42)
    rng = np.random.default_rng(5)
    # Away from the start's symmetries: biases and norm weights get values too.
    trainer.params.flat += 0.1 * rng.standard_normal(trainer.params.flat.size)
    trainer.params.wte[CONFIG.V :] = 0
    return trainer


def tokens(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, CONFIG.V, (B, T + 1), dtype=np.int32)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def gradients(trainer: Trainer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gradients of the mean loss, through the same calls as a training step."""
    saved = trainer.params.flat.copy()
    trainer.step(pack([(x, y)]), 0, 0.0)
    np.testing.assert_array_equal(trainer.params.flat, saved)
    return trainer.grads.flat.copy()


@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradient_matches_central_differences(recompute: int, dropout_p: float) -> None:
    trainer = make_trainer(recompute=recompute, dropout_p=dropout_p)
    x, y = tokens()
    gradient = gradients(trainer, x, y)
    direction = np.random.default_rng(1).standard_normal(gradient.size)
    cut_packed(direction, parameter_specs(CONFIG)).wte[CONFIG.V :] = 0
    start, epsilon = trainer.params.flat.copy(), 1e-6
    losses = []
    for sign in (1, -1):
        trainer.params.flat[:] = start + sign * epsilon * direction
        # Rate 0: the step only measures; dropout draws the masks of step 0 each time.
        losses.append(trainer.step(pack([(x, y)]), 0, 0.0).result().loss)
        trainer.params.flat[:] = start
    slope = (losses[0] - losses[1]) / (2 * epsilon)
    assert slope == pytest.approx(gradient @ direction, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("cores", [2, 3, 8])
def test_gradients_are_those_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, cores: int, recompute: int
) -> None:
    found = []
    for count in (1, cores, cores):
        monkeypatch.setattr("cupygpt.device.batch_split.num_cores", lambda count=count: count)
        trainer = make_trainer(recompute=recompute, dropout_p=0.3)
        found.append(gradients(trainer, *tokens()))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(found[2], found[1])


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("cores", [1, 2])
def test_a_layer_is_done_when_nothing_more_is_added_to_it(
    monkeypatch: pytest.MonkeyPatch, cores: int, dropout_p: float
) -> None:
    """Only then can the ranks begin to add up its gradients."""
    monkeypatch.setattr(model, "num_slices", lambda array: cores)
    trainer, (x, y) = make_trainer(dropout_p=dropout_p), tokens()
    seen = {}

    def keep(layer: int) -> None:
        seen[layer] = {name: grad.copy() for name, grad in trainer.grads.layer(layer).items()}

    trainer.model.forward(x, micro_step=0)
    trainer.model.backward(x, y, token_order(x), 0.1, micro_step=0, layer_done=keep)
    assert list(seen) == [1, 0]
    for layer, then in seen.items():
        assert len(then) == 12
        for name, grad in trainer.grads.layer(layer).items():
            assert then[name].any(), name
            np.testing.assert_array_equal(then[name], grad, name)


def test_every_parameter_has_its_own_derivative() -> None:
    trainer = make_trainer()
    x, y = tokens()
    gradient = cut_packed(gradients(trainer, x, y), parameter_specs(CONFIG))
    rng = np.random.default_rng(2)
    for name, view in trainer.params.items():
        rows = T * CONFIG.C if name == "wpe" else view.size  # later positions are not used
        limit = CONFIG.V * CONFIG.C if name == "wte" else rows
        index = int(rng.integers(limit))
        flat = view.reshape(-1)
        value, epsilon, losses = flat[index], 1e-5, []
        for sign in (1, -1):
            flat[index] = value + sign * epsilon
            losses.append(trainer.evaluate([(x, y)]))
        flat[index] = value
        slope = (losses[0] - losses[1]) / (2 * epsilon)
        wanted = getattr(gradient, name).reshape(-1)[index]
        assert slope == pytest.approx(wanted, rel=1e-5, abs=1e-8), name


def test_padding_rows_get_no_gradient_whatever_their_values() -> None:
    trainer = make_trainer()
    trainer.params.wte[CONFIG.V :] = 3.0
    x, y = tokens()
    gradient = cut_packed(gradients(trainer, x, y), parameter_specs(CONFIG))
    assert not gradient.wte[CONFIG.V :].any()
    filled = trainer.evaluate([(x, y)])
    trainer.params.wte[CONFIG.V :] = 0.0
    assert trainer.evaluate([(x, y)]) == filled


def test_no_position_sees_later_tokens() -> None:
    trainer = make_trainer()
    x, y = tokens()
    trainer.evaluate([(x, y)])
    before = trainer.model.acts.losses.copy()
    x[:, -1] = (x[:, -1] + 1) % CONFIG.V
    trainer.evaluate([(x, y)])
    np.testing.assert_array_equal(trainer.model.acts.losses[:, :-1], before[:, :-1])
    assert not np.array_equal(trainer.model.acts.losses[:, -1], before[:, -1])


def test_ignored_targets_do_not_count() -> None:
    trainer = make_trainer()
    x, y = tokens()
    one_row = y.copy()
    one_row[1:] = -1
    trainer.evaluate([(x, y)])
    wanted = trainer.model.acts.losses[0].mean()
    assert trainer.evaluate([(x, one_row)]) == pytest.approx(wanted, rel=1e-12)


def test_recompute_changes_memory_and_nothing_else() -> None:
    x, y = tokens()
    sizes, results = [], []
    for recompute in (0, 1, 2):
        trainer = make_trainer(FP32, recompute=recompute)
        sizes.append(trainer.model.acts.flat.nbytes)
        results.append(gradients(trainer, x, y))
    assert sizes[0] > sizes[1] > sizes[2]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_float32_is_close_to_float64() -> None:
    x, y = tokens()
    exact = gradients(make_trainer(FP64), x, y)
    single = gradients(make_trainer(FP32), x, y)
    assert np.abs(single - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("count", [1, 2])
def test_the_buffers_are_freed_with_the_trainer(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """At once and not at the next garbage collection: others need the memory of a GPU."""
    monkeypatch.setattr(model, "num_slices", lambda array: count)
    trainer = make_trainer()
    trainer.step(pack([tokens()]), 0, 0.0)
    arena = weakref.ref(trainer.model.acts)
    gc.disable()
    try:
        del trainer
        assert arena() is None
    finally:
        gc.enable()
