"""Models of the interface for its tests: on the CPU, on the emulator and on a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.emulated_gpu import EmulatedGPU
from support.gpu import require_gpu

from cupygpt.checkpoint.model_file import ModelFile, save_model
from cupygpt.config import GPTConfig
from cupygpt.device.callers import Turns
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import BF16, FP32
from cupygpt.exchange.source import Kind, WeightSource
from cupygpt.interface.model import Model, Weights
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.parameters import parameters_on

TINY = GPTConfig(maxT=16, V=257, L=2, NH=2, C=32)

DEVICES = [
    pytest.param(("cpu", "fp32"), id="cpu"),
    pytest.param(("emulated", "bf16"), id="emulated-bf16"),
    pytest.param(("cuda", "fp32"), id="cuda", marks=pytest.mark.gpu),
    pytest.param(("cuda", "bf16"), id="cuda-bf16", marks=pytest.mark.gpu),
]

ON_HARDWARE = [device for device in DEVICES if "emulated" not in str(device.id)]
"""Text on the emulator takes seconds for each token."""

NAMES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Devices as a program names them."""


def device_named(name: str) -> str:
    """The name; skips the test where there is no such device."""
    if name == "cuda":
        require_gpu()
    return name


def tiny_weights(seed: int = 42) -> np.ndarray:
    """Large enough that attention and choices differ, and as bfloat16 holds them too."""
    values = initial_parameters(TINY, seed) * np.float32(4)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def tiny_file(folder: Path, seed: int = 42) -> Path:
    path = folder / f"tiny{seed}.bin"
    save_model(path, TINY, tiny_weights(seed), "fp32")
    return path


def model_on(device: str, precision: str) -> Model:
    place: Any = {"cpu": CPU, "emulated": EmulatedGPU, "cuda": require_gpu}[device]()
    chosen = {"fp32": FP32, "bf16": BF16}[precision]
    file = ModelFile(TINY, precision, tiny_weights(), ())
    params = parameters_on(place, TINY, file.parameters, chosen)
    source = WeightSource(Kind.MODEL_FILE, Path("no such file"), "a test", is_trained=True)
    return Model(Weights(source, Turns(place), TINY, params, chosen, lambda: file))
