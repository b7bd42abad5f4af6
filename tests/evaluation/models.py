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
    logits, _ = oracle_model(np.asarray(ids[:-1], np.int64), config, weights(config))
    return oracle.classifier(logits, np.asarray(ids[1:], np.int64), config.V, 1.0)[0]


def oracle_model(
    ids: np.ndarray, config: GPTConfig, parameters: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The logits (T, Vp) of ids (T,), and qkv (1, T, 3C) of each layer, in float64."""
    p = cut_packed(parameters.astype(np.float64), parameter_specs(config))
    x, qkvs = oracle.encoder_forward(ids[None], p.wte, p.wpe), []
    for l in range(config.L):  # noqa: E741
        norm = oracle.layernorm_forward(x, p.ln1w[l], p.ln1b[l])[0]
        qkvs.append(norm @ p.qkvw[l].T + p.qkvb[l])
        heads = oracle.attention_forward(qkvs[-1], config.NH)[0]
        x = x + heads @ p.attprojw[l].T + p.attprojb[l]
        norm = oracle.layernorm_forward(x, p.ln2w[l], p.ln2b[l])[0]
        hidden = oracle.gelu_forward(norm @ p.fcw[l].T + p.fcb[l])
        x = x + hidden @ p.fcprojw[l].T + p.fcprojb[l]
    return oracle.layernorm_forward(x, p.lnfw, p.lnfb)[0][0] @ p.wte.T, qkvs
