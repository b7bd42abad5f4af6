"""Whole runs on a GPU: equal to the CPU's, repeatable, resumable, as large as planned."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import require_gpu
from support.small_runs import main_log, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.config import GPT2_VOCAB, GPTConfig, small_config
from cupygpt.data.loader import pack
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32, PRECISIONS
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import RunShape, memory_plan
from cupygpt.model.tensors import cut_packed, parameter_specs
from cupygpt.train import main
from cupygpt.training.trainer import OptimizerSettings, StepResult, Trainer

pytestmark = pytest.mark.gpu

SHAPES = {
    "T1": (GPTConfig(maxT=4, V=257, L=2, NH=2, C=32), 3, 1),
    "HS8": (GPTConfig(maxT=40, V=65, L=2, NH=3, C=24), 2, 37),
    "HS16": (GPTConfig(maxT=80, V=257, L=2, NH=4, C=64), 3, 77),
    "HS32": (small_config(257), 4, 129),
    "HS64": (GPTConfig(maxT=200, V=300, L=2, NH=2, C=128), 2, 200),
    "HS80": (GPTConfig(maxT=100, V=257, L=2, NH=2, C=160), 2, 99),
    "HS128": (GPTConfig(maxT=100, V=257, L=2, NH=2, C=256), 2, 65),
    "V50257": (small_config(GPT2_VOCAB), 4, 64),
    "C1600": (GPTConfig(maxT=64, V=257, L=1, NH=25, C=1600), 2, 33),
}


@pytest.fixture
def gpu() -> Any:
    device = require_gpu()
    device.activate()  # runs in other tests have made their own stream the current one
    return device


def make(device: Any, config: GPTConfig, B: int, T: int, **options: Any) -> Trainer:
    precision = options.pop("precision", "fp32")
    shape = RunShape(
        config,
        B,
        T,
        logits_limit=options.pop("logits_limit", 256),
        precision=PRECISIONS[precision.split()[0]],
        master=precision == "bf16",
    )
    trainer = Trainer(device, shape, OptimizerSettings(weight_decay=0.1), **options)
    trainer.load_parameters(initial_parameters(config, 42))
    return trainer


def inputs(
    config: GPTConfig, B: int, T: int, steps: int, accumulation: int = 1
) -> list[np.ndarray]:
    """Packed batches of random walks over the ids: there is something to learn."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(steps):
        walks = [
            (np.cumsum(rng.integers(-3, 4, (B, T + 1)), axis=1) % config.V).astype(np.int32)
            for _ in range(accumulation)
        ]
        out.append(pack([(walk[:, :-1], walk[:, 1:]) for walk in walks]))
    return out


def train(trainer: Trainer, batches: list[np.ndarray], lr: float = 1e-3) -> list[StepResult]:
    return [trainer.step(batch, i, lr).result() for i, batch in enumerate(batches)]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("tf32", 2e-3), ("bf16", 2e-2)])
def test_losses_equal_the_cpu(gpu: Any, name: str, precision: str, limit: float) -> None:
    config, B, T = SHAPES[name]
    options = {"dropout_p": 0.1, "accumulation": 2, "seed": 5}
    batches = inputs(config, B, T, 20, accumulation=2)
    lr = 1e-3 if config.C < 1000 else 1e-4  # rounding errors grow where the loss jumps
    wanted = train(make(CPU(), config, B, T, **options), batches, lr)
    got = train(make(gpu, config, B, T, precision=precision, graph=True, **options), batches, lr)
    losses = np.array([[a.loss, b.loss] for a, b in zip(got, wanted, strict=True)])
    assert np.abs(losses[:, 0] - losses[:, 1]).max() < limit


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "bf16 without master weights"])
def test_runs_repeat_bit_for_bit_with_and_without_the_graph(gpu: Any, precision: str) -> None:
    config, B, T = SHAPES["HS32"]
    batches = inputs(config, B, T, 8, accumulation=3)
    ends = []
    for graph in (True, True, False):
        trainer = make(
            gpu, config, B, T, precision=precision, graph=graph, dropout_p=0.2, accumulation=3
        )
        results = train(trainer, batches)
        ends.append((results, gpu.download(trainer.params.flat)))
    for results, params in ends[1:]:
        assert results == ends[0][0]
        np.testing.assert_array_equal(params, ends[0][1])


def test_more_rows_than_a_16_bit_grid_holds(gpu: Any) -> None:
    config = GPTConfig(maxT=256, V=257, L=1, NH=2, C=32)
    B, T = 300, 256  # 76,800 rows
    batches = inputs(config, B, T, 2)
    wanted = train(make(CPU(), config, B, T), batches)
    got = train(make(gpu, config, B, T, logits_limit=8192), batches)
    assert got[1].loss == pytest.approx(wanted[1].loss, abs=1e-4)
    assert got[1].grad_norm == pytest.approx(wanted[1].grad_norm, rel=1e-3)


@pytest.mark.gpu_alone
def test_tensors_of_more_than_2_to_the_31_elements(gpu: Any) -> None:
    config = GPTConfig(maxT=1024, V=GPT2_VOCAB, L=1, NH=1, C=32)
    B, T = 42, 1024  # logits of 43,008 × 50,304 = 2,163,474,432 elements
    if gpu.free_bytes() < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    batches = inputs(config, B, T, 2)
    assert RunShape(config, B, T, logits_limit=1 << 20).logits_rows * config.Vp > 2**31
    chunked = train(make(gpu, config, B, T, logits_limit=4096), batches)
    whole = train(make(gpu, config, B, T, logits_limit=1 << 20), batches)
    for a, b in zip(chunked, whole, strict=True):
        assert b.loss == pytest.approx(a.loss, abs=1e-5)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-4)


@pytest.mark.gpu_alone
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_memory_in_use_equals_the_plan(gpu: Any, precision: str) -> None:
    config, B, T = small_config(GPT2_VOCAB), 16, 256
    train(make(gpu, config, 1, 8), inputs(config, 1, 8, 1))  # brings the library's workspace
    gc.collect()
    before = gpu.used_bytes()
    trainer = make(gpu, config, B, T, logits_limit=8192, precision=precision, graph=True)
    generator = Generator(gpu, config, trainer.params, trainer.shape.precision)
    train(trainer, inputs(config, B, T, 4))
    planned = sum(memory_plan(trainer.shape).values())
    assert gpu.used_bytes() - before == pytest.approx(planned, rel=0.05)
    del generator  # its buffers were counted


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--dropout", "0.2", "-d", "96"],
        ["--no-graph"],
        ["-w", "0"],
        ["--precision", "tf32", "--dropout", "0.2"],
        ["--precision", "fp32"],
    ],
    ids=" ".join,
)
def test_a_run_equals_one_that_stopped_and_resumed(tmp_path: Path, more: list[str]) -> None:
    require_gpu()
    flags = [*write_files(tmp_path, device="cuda"), *more]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert main([*flags, "-n", "45", "-o", str(straight)]) == 0
    assert main([*flags, "-n", "33", "-o", str(resumed)]) == 0
    assert main(["--resume", str(resumed), "-n", "45"]) == 0
    assert main_log(resumed) == main_log(straight)
    ends = [load_checkpoint(folder, 45) for folder in (straight, resumed)]
    np.testing.assert_array_equal(ends[0].state.params, ends[1].state.params)
    is_bfloat16 = "--precision" not in more
    assert ends[0].precision == ("bf16" if is_bfloat16 else "fp32")
    assert (ends[0].state.master is not None) == (is_bfloat16 and "-w" not in more)


def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_gpu()
    flags = [*write_files(tmp_path, device="cuda"), "-n", "5", "-o", str(tmp_path / "run")]
    assert main([*flags, "-b", "200000000"]) == 2
    err = capsys.readouterr().err
    assert "largest batch that fits is -b" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_resumes(tmp_path: Path, number: signal.Signals) -> None:
    require_gpu()
    run, straight = tmp_path / "run", tmp_path / "straight"
    flags = [*write_files(tmp_path, device="cuda"), "-n", "400", "--checkpoint-every", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cupygpt.train", *flags, "-o", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(checkpoint_steps(run)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert checkpoint_steps(run)[-1] < 400
    assert main(["--resume", str(run)]) == 0
    assert main([*flags, "-o", str(straight)]) == 0
    assert main_log(run) == main_log(straight)


def test_sampling_on_the_gpu_equals_the_cpu(gpu: Any) -> None:
    config = GPTConfig(maxT=40, V=257, L=2, NH=2, C=32)
    weights = initial_parameters(config, 42) * np.float32(5)
    texts = []
    for device in (CPU(), gpu):
        params = cut_packed(
            device.zeros(config.num_parameters, np.float32), parameter_specs(config)
        )
        device.upload(params.flat, weights)
        generator = Generator(device, config, params, FP32)
        texts.append(list(generator.generate([256], 90, Sampling(temperature=0.0), (1,))))
    assert texts[0] == texts[1]
