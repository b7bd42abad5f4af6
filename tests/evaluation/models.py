"""Models for the tests of the evaluation, and the same network in float64."""

from functools import cache
from pathlib import Path

import numpy as np

from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32
from cupygpt.evaluation.scorer import Scorer, make_scorer
from cupygpt.lab import oracle
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.tensors import cut_packed, parameter_specs

BYTES = GPTConfig(maxT=64, V=257, L=2, NH=2, C=32)


def weights(config: GPTConfig = BYTES) -> np.ndarray:
    """Large enough that the choices differ."""
    return initial_parameters(config, 42) * np.float32(4)


def write_model(path: Path, config: GPTConfig = BYTES) -> Path:
    save_model(path, config, weights(config), "fp32")
    return path


def scorer(window: int = 64, config: GPTConfig = BYTES) -> Scorer:
    return make_scorer(CPU(), config, weights(config), FP32, window)


def oracle_nats(ids: np.ndarray, config: GPTConfig = BYTES) -> np.ndarray:
    """-log p of each of ids[1:] from those before it, all in one window, in float64."""
    return _oracle_nats(tuple(map(int, ids)), config)


@cache
def _oracle_nats(ids: tuple[int, ...], config: GPTConfig) -> np.ndarray:
    p = cut_packed(weights(config).astype(np.float64), parameter_specs(config))
    x = oracle.encoder_forward(np.asarray(ids, np.int64)[None, :-1], p.wte, p.wpe)
    for l in range(config.L):  # noqa: E741
        norm = oracle.layernorm_forward(x, p.ln1w[l], p.ln1b[l])[0]
        heads = oracle.attention_forward(norm @ p.qkvw[l].T + p.qkvb[l], config.NH)[0]
        x = x + heads @ p.attprojw[l].T + p.attprojb[l]
        norm = oracle.layernorm_forward(x, p.ln2w[l], p.ln2b[l])[0]
        hidden = oracle.gelu_forward(norm @ p.fcw[l].T + p.fcb[l])
        x = x + hidden @ p.fcprojw[l].T + p.fcprojb[l]
    logits = oracle.layernorm_forward(x, p.lnfw, p.lnfb)[0][0] @ p.wte.T
    return oracle.classifier(logits, np.asarray(ids[1:], np.int64), config.V, 1.0)[0]
