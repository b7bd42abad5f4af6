"""llm.c's weight initialisation from a descriptor, which gives the numbers of PyTorch's on the CPU.

Source: llm.c train_gpt2.cu (gpt_build_from_descriptor) and llmc/rand.h; Box-Muller on MT19937.
"""

import math

import numpy as np

from cupygpt.config import GPTConfig
from cupygpt.model.tensors import Tensors, cut_packed, parameter_specs

INIT_STD = 0.02
_MIN_NORMALS = 16


def initialize(params: Tensors, config: GPTConfig, seed: int) -> None:
    """Fill the parameters: normally distributed matrices, zero biases, LayerNorm weights one.

    Written: all of params (host arrays, float32 or float64); the padding rows of wte are 0. The
    standard deviation of the residual projections is divided by sqrt(2L) (GPT-2). Seed 42 gives
    llm.c's numbers.
    """
    generator = _words(seed)
    params.flat.fill(0)
    for weight in (params.ln1w, params.ln2w, params.lnfw):
        weight.fill(1)
    residual_std = INIT_STD / math.sqrt(2 * config.L)
    fill_normal(params.wte[: config.V], INIT_STD, generator)
    fill_normal(params.wpe, INIT_STD, generator)
    for layer in range(config.L):
        fill_normal(params.qkvw[layer], INIT_STD, generator)
        fill_normal(params.attprojw[layer], residual_std, generator)
        fill_normal(params.fcw[layer], INIT_STD, generator)
        fill_normal(params.fcprojw[layer], residual_std, generator)


def initial_parameters(config: GPTConfig, seed: int) -> np.ndarray:
    """New float32 parameters (P,) in file order."""
    params = cut_packed(np.empty(config.num_parameters, np.float32), parameter_specs(config))
    initialize(params, config, seed)
    return np.asarray(params.flat)


def fill_normal(out: np.ndarray, std: float, generator: np.random.RandomState) -> None:
    """Write normal numbers of mean 0 into `out` (at least 16 elements, contiguous).

    Blocks of 16 hold eight Box-Muller pairs. If the size is no multiple of 16, the last 16
    elements are drawn a second time.
    """
    flat = out.reshape(-1)
    assert flat.size >= _MIN_NORMALS, flat.size
    whole = flat.size // 16 * 16
    uniforms = _uniforms(flat.size, generator)
    flat[:whole] = _box_muller(uniforms[:whole], std)
    if whole < flat.size:
        flat[-16:] = _box_muller(_uniforms(16, generator), std)


def _words(seed: int) -> np.random.RandomState:
    """The 32-bit words of MT19937 with the standard initialisation, a stream NumPy has frozen."""
    return np.random.RandomState(seed)


def _uniforms(count: int, generator: np.random.RandomState) -> np.ndarray:
    words = generator.randint(0, 2**32, size=count, dtype=np.uint32)
    return (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniforms: np.ndarray, std: float) -> np.ndarray:
    pairs = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2.0) * np.log((1.0 - pairs[:, 0] + 1e-12).astype(np.float32)))
    angle = (2.0 * math.pi * pairs[:, 1].astype(np.float64)).astype(np.float32)
    out = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return (out * np.float32(std)).reshape(-1)
