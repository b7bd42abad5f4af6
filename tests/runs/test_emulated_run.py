"""A training run whose kernels the emulator executes equals the run of the CPU device."""

from typing import Any

import numpy as np
import pytest
from support.emulated_gpu import EmulatedGPU, EmulatedHopper

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.config import GPTConfig
from cupygpt.data.loader import pack
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import BF16, FP32, Precision
from cupygpt.kernels.load import record_kernels
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import RunShape
from cupygpt.model.parameters import parameters_on
from cupygpt.training.trainer import OptimizerSettings, Trainer

CONFIG = GPTConfig(maxT=16, V=65, L=2, NH=2, C=32)
B, T, ACCUMULATION, STEPS = 2, 13, 2, 2


@pytest.fixture
def emulated_gpu() -> EmulatedGPU:
    return EmulatedGPU()


def make(device: CPU, config: GPTConfig = CONFIG, **options: Any) -> Trainer:
    shape = RunShape(
        config,
        B,
        T,
        recompute=options.pop("recompute", 0),
        precision=options.pop("precision", FP32),
        master=options.pop("master", False),
    )
    settings = OptimizerSettings(weight_decay=0.1)
    trainer = Trainer(device, shape, settings, accumulation=ACCUMULATION, **options)
    trainer.load_parameters(initial_parameters(config, 42))
    return trainer


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, CONFIG.V, (STEPS, ACCUMULATION, B, T + 1), dtype=np.int32)
    return [pack([(row[:, :-1], row[:, 1:]) for row in step]) for step in rows]


@pytest.mark.parametrize(("dropout_p", "recompute"), [(0.1, 0), (0.0, 2)])
def test_losses_norms_and_weights_agree(
    emulated_gpu: EmulatedGPU, dropout_p: float, recompute: int
) -> None:
    ends = []
    for device in (CPU(), emulated_gpu):
        trainer = make(device, dropout_p=dropout_p, recompute=recompute)
        results = [trainer.step(x, i, 1e-2).result() for i, x in enumerate(batches())]
        figures = [[r.loss, r.grad_norm] for r in results]
        ends.append((np.array(figures), np.asarray(trainer.params.flat)))
    np.testing.assert_allclose(ends[1][0], ends[0][0], rtol=2e-6)
    np.testing.assert_allclose(ends[1][1], ends[0][1], atol=2e-4)


@pytest.mark.parametrize("master", [True, False])
def test_bfloat16_trains_like_float32(emulated_gpu: EmulatedGPU, master: bool) -> None:
    ends = []
    for device, options in (
        (CPU(), {}),
        (emulated_gpu, {"precision": BF16, "master": master}),
    ):
        trainer = make(device, dropout_p=0.1, **options)
        results = [trainer.step(x, i, 1e-2).result() for i, x in enumerate(batches())]
        figures = np.array([[r.loss, r.grad_norm] for r in results])
        ends.append((figures, trainer))
    np.testing.assert_allclose(ends[1][0][:, 0], ends[0][0][:, 0], atol=0.02)
    np.testing.assert_allclose(ends[1][0][:, 1], ends[0][0][:, 1], rtol=0.05)
    bits = np.asarray(ends[1][1].params.flat)
    assert bits.dtype == np.uint16
    if master:
        np.testing.assert_array_equal(bits, to_bfloat16(np.asarray(ends[1][1].master)))


def test_generated_text_agrees(emulated_gpu: EmulatedGPU) -> None:
    """The host reads behind the steps, past the window too; a text that ends early is exact."""
    texts = []
    for device in (CPU(), emulated_gpu):
        generator = Generator(device, CONFIG, make(device).params, FP32, window=10)
        texts.append(list(generator.generate([1, 2, 3], 12, Sampling(temperature=0.7), (4,))))
        stop = texts[0][5]
        short = list(generator.generate([1, 2, 3], 12, Sampling(0.7), (4,), stop=stop))
        assert short == texts[0][: texts[0].index(stop)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("rows", "precision"), [(3, FP32), (5, FP32), (5, BF16)])
def test_a_batch_of_texts_agrees(
    emulated_gpu: EmulatedGPU, rows: int, precision: Precision
) -> None:
    """With the kernels for few rows and with products, prompts of different lengths."""
    prompts = [list(range(1, 2 + row)) for row in range(rows)]
    seeds = [(row,) for row in range(rows)]
    found = []
    for device in (CPU(), emulated_gpu):
        weights = initial_parameters(CONFIG, 42) * np.float32(4)
        # bfloat16 weights are exact in float32, which is what the CPU computes in.
        rounded = from_bfloat16(to_bfloat16(weights)) if precision is BF16 else weights
        own = precision if device.is_gpu else FP32
        params = parameters_on(device, CONFIG, rounded, own)
        generator = Generator(device, CONFIG, params, own, window=8, rows=rows)
        steps = list(generator.generate_batch(prompts, 6, Sampling(0.0), seeds))
        found.append([step.tolist() for step in steps])
    assert found[0] == found[1]


def test_a_dry_run_finds_every_kernel_and_changes_no_weight(emulated_gpu: EmulatedGPU) -> None:
    trainer = make(emulated_gpu)
    generator = Generator(emulated_gpu, CONFIG, trainer.params, FP32)
    before = np.asarray(trainer.params.flat).copy()

    def dry_run() -> None:
        trainer.dry_run()
        generator.dry_run()

    files = {variant.file for variant in record_kernels(dry_run)}
    np.testing.assert_array_equal(np.asarray(trainer.params.flat), before)
    assert {"encoder.cu", "layernorm.cu", "attention/cuda_cores.cu", "gelu.cu", "adamw.cu"} <= files
    assert {"classifier.cu", "global_norm.cu", "sampling.cu", "bias.cu"} <= files


HOPPER = GPTConfig(maxT=16, V=65, L=1, NH=1, C=64)
"""Small, and with the channels and the head size that the kernels for Hopper take."""


def test_hopper_kernels_train_like_the_others() -> None:
    ends = []
    for device in (EmulatedGPU(), EmulatedHopper()):
        trainer = make(device, HOPPER, precision=BF16, master=True)
        files = {variant.file for variant in record_kernels(trainer.dry_run)}
        results = [trainer.step(x, i, 1e-2).result() for i, x in enumerate(batches())]
        ends.append((files, np.array([[r.loss, r.grad_norm] for r in results])))
    only_hopper = {"lm_head.cu", "attention/wgmma_forward.cu", "attention/wgmma_backward.cu"}
    assert only_hopper <= ends[1][0]
    assert not only_hopper & ends[0][0]
    np.testing.assert_allclose(ends[1][1][:, 0], ends[0][1][:, 0], rtol=5e-4)
    np.testing.assert_allclose(ends[1][1][:, 1], ends[0][1][:, 1], rtol=5e-3)
