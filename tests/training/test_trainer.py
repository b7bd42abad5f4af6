import numpy as np
import pytest

from cupygpt.config import GPTConfig
from cupygpt.data.loader import pack
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32, PRECISIONS
from cupygpt.errors import DeviceError
from cupygpt.model.generate import Generator
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import RunShape, check_fits, largest_batch, memory_plan, shape_of_run
from cupygpt.training.trainer import OptimizerSettings, Trainer

CONFIG = GPTConfig(maxT=16, V=65, L=2, NH=2, C=16)
T = 8


def make(B: int, accumulation: int = 1, **options: float) -> Trainer:
    settings = OptimizerSettings(weight_decay=0.1)
    trainer = Trainer(
        CPU(),
        RunShape(CONFIG, B, T),
        settings,
        accumulation=accumulation,
        **options,  # type: ignore[arg-type]
    )
    trainer.params.flat[:] = initial_parameters(CONFIG, 42)
    return trainer


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cut = rng.integers(0, CONFIG.V, (count, T + 1), dtype=np.int32)
    return np.ascontiguousarray(cut[:, :-1]), np.ascontiguousarray(cut[:, 1:])


def test_accumulation_equals_one_large_batch() -> None:
    x, y = rows(8)
    whole, parts = make(8), make(2, accumulation=4)
    for step in range(3):
        large = whole.step(pack([(x, y)]), step, 1e-2).result()
        small = parts.step(
            pack([(x[i : i + 2], y[i : i + 2]) for i in range(0, 8, 2)]), step, 1e-2
        ).result()
        assert small.loss == pytest.approx(large.loss, rel=1e-6)
        assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-5)
    np.testing.assert_allclose(parts.params.flat, whole.params.flat, atol=2e-4)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_two_runs_are_bit_identical(dropout_p: float) -> None:
    results = []
    for _ in range(2):
        trainer = make(4, dropout_p=dropout_p, seed=3)
        losses = [
            trainer.step(pack([rows(4, seed)]), seed, 1e-2).result().loss for seed in range(5)
        ]
        results.append((losses, trainer.params.flat.copy()))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_dropout_draws_other_masks_at_each_step_and_seed() -> None:
    x, y = rows(4)
    losses = {
        make(4, dropout_p=0.5, seed=seed).step(pack([(x, y)]), step, 0.0).result().loss
        for seed in (0, 1, 2**31)
        for step in (0, 1)
    }
    assert len(losses) == 6


def test_evaluation_has_no_dropout() -> None:
    batch = rows(4)
    assert make(4, dropout_p=0.5).evaluate([batch]) == make(4).evaluate([batch])


def test_update_follows_the_formula() -> None:
    trainer = make(4)
    p0 = trainer.params.flat.astype(np.float64)
    result = trainer.step(pack([rows(4)]), 0, 1e-2).result()
    gradient = trainer.grads.flat.astype(np.float64)
    assert result.grad_norm == pytest.approx(np.sqrt((gradient**2).sum()), rel=1e-6)
    gradient *= min(1.0, 1.0 / result.grad_norm)
    m_hat = gradient  # (1 - β1) g / (1 - β1)
    v_hat = gradient**2
    decay = np.zeros_like(p0)
    for start, stop, decays in trainer._segments:
        decay[start:stop] = 0.1 if decays else 0.0
    wanted = p0 - 1e-2 * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * p0)
    # Where the gradient is near Adam's epsilon the quotient is ill-conditioned in float32.
    clear = np.abs(gradient) > 1e-6
    np.testing.assert_allclose(trainer.params.flat[clear], wanted[clear], atol=1e-6)
    assert clear.mean() > 0.3


def test_the_plan_is_what_is_allocated() -> None:
    trainer = make(4)
    plan = memory_plan(RunShape(CONFIG, 4, T))
    generator = Generator(CPU(), CONFIG, trainer.params, FP32)
    assert plan == {
        "parameters": trainer.params.flat.nbytes,
        "gradients": trainer.grads.flat.nbytes,
        "optimizer": trainer.m.nbytes + trainer.v.nbytes,
        "activations": trainer.model.acts.flat.nbytes,
        "scratch": trainer.model.scratch.flat.nbytes,
        "sampling": generator._decoder._buffers.flat.nbytes,
    }


def test_a_batch_too_large_names_the_largest_that_fits() -> None:
    small, large = (sum(memory_plan(RunShape(CONFIG, B, T)).values()) for B in (10, 11))
    free = int((small + large) / 2 / 0.95)
    check_fits(RunShape(CONFIG, 10, T), free)
    with pytest.raises(DeviceError, match=r"largest batch that fits is -b 10 at -t 8"):
        check_fits(RunShape(CONFIG, 500, T), free)
    with pytest.raises(DeviceError, match="Not even -b 1 fits"):
        check_fits(RunShape(CONFIG, 2, T), 1000)
    check_fits(RunShape(CONFIG, 500, T), None)


@pytest.mark.parametrize("budget", [0, 1, 9, 10, 11, 1000])
def test_largest_batch(budget: int) -> None:
    assert largest_batch(lambda B: 10 * B, budget) == budget // 10


@pytest.mark.parametrize(
    ("precision", "master_weights", "bytes_a_parameter"),
    [("tf32", True, (4, 4, 8)), ("bf16", True, (2, 4, 12)), ("bf16", False, (2, 4, 8))],
)
def test_the_plan_follows_the_precision(
    precision: str, master_weights: bool, bytes_a_parameter: tuple[int, ...]
) -> None:
    shape = shape_of_run(
        CONFIG, 4, T, PRECISIONS[precision], on_gpu=True, master_weights=master_weights
    )
    plan = memory_plan(shape)
    planned = [plan[name] for name in ("parameters", "gradients", "optimizer")]
    assert planned == [size * CONFIG.num_parameters for size in bytes_a_parameter]
