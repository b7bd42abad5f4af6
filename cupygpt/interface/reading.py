"""What a model computes of given ids: logits, the loss of each token, attention."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cupygpt.arrays import Array, from_bfloat16
from cupygpt.data.token_files import Ids
from cupygpt.device.callers import Pause
from cupygpt.device.cpu import available_memory_bytes
from cupygpt.errors import DeviceError
from cupygpt.evaluation.scorer import Scorer
from cupygpt.evaluation.windows import EncodedText, counted, text_batches
from cupygpt.model.gpt import GPT
from cupygpt.model.memory_plan import MEMORY_MARGIN
from cupygpt.ops.linear import linear_forward

CHUNK_ROWS = 1024
"""Rows of logits that are computed at once where a buffer is made for them."""

Floats = npt.NDArray[np.float32]


def logits(scorer: Scorer, ids: Ids, pause: Pause, *, on_device: bool) -> Array:
    """The logits (B, T, V) float32 of ids (B, T); in memory of the device if that is asked for.

    Raises DeviceError where they do not fit.
    """
    (B, T), V = ids.shape, scorer.config.V
    device = scorer.device
    _check_fit(4 * B * T * V, device.free_bytes() if on_device else available_memory_bytes())
    if on_device:
        out = device.zeros(B * T * V, np.float32).reshape(B * T, V)
    else:
        out = np.empty((B * T, V), np.float32)
    rows = min(scorer.rows_of(T), B)
    for first in range(0, B, rows):
        pause()
        model = scorer.forward(ids[first : first + rows])
        _head(scorer, model, out[first * T : (first + rows) * T], on_device=on_device)
    return out.reshape(B, T, V)


def _check_fit(needed: int, free: int | None) -> None:
    if free is not None and needed > free * MEMORY_MARGIN:
        raise DeviceError(
            f"the logits take {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free. Ask for "
            f"fewer rows at once."
        )


def _head(scorer: Scorer, model: GPT, out: Array, *, on_device: bool) -> None:
    """Fill out (n, V) from the last LayerNorm of a forward pass."""
    config, device, precision = scorer.config, scorer.device, scorer.precision
    lnf = model.acts.lnf.reshape(-1, config.C)
    chunk = model.scratch.logits
    if precision.rounds_storage:  # the logits themselves stay float32
        size = min(len(chunk), CHUNK_ROWS)
        chunk = device.zeros(size * config.Vp, np.float32).reshape(size, config.Vp)
    for start in range(0, len(out), len(chunk)):
        stop = min(start + len(chunk), len(out))
        part = chunk[: stop - start]
        linear_forward(part, lnf[start:stop], model.params.wte, None, precision=precision)
        part = part if on_device else device.download(part)
        out[start:stop] = part[:, : config.V]


def losses(scorer: Scorer, texts: Sequence[Ids], window: int, pause: Pause) -> list[Floats]:
    """-log p in nats of each id but the first of each text.

    A text that is longer than the window is read in windows of so many ids that do not overlap, as
    `evaluate` reads it. Raises RunError for losses that are not finite.
    """
    whole = [EncodedText(Path("ids"), ids.astype(np.uint32)) for ids in texts]
    found = [np.zeros(len(ids) - 1, np.float32) for ids in texts]
    try:
        for batch, nats in scorer.losses(text_batches(whole, scorer, window, window)):
            owners, starts = batch.tag.texts.tolist(), batch.tag.starts.tolist()
            for row, (owner, start) in enumerate(zip(owners, starts, strict=True)):
                (places,) = np.nonzero(counted(batch.targets[row]))
                found[owner][start + places] = nats[row, places]
            pause()
    finally:
        scorer.device.synchronize()  # after Ctrl-C batches may still be queued
    return found


def attention(scorer: Scorer, ids: Ids, layer: int, head: int) -> Floats:
    """The weights (T, T) with which each position reads those up to itself; rows sum to 1."""
    model = scorer.forward(ids[None], layers=layer + 1)
    HS, C = scorer.config.HS, scorer.config.C
    qkv = _float32(scorer.device.download(model.acts.qkv[0]))[0]
    queries = qkv[:, head * HS : (head + 1) * HS]
    keys = qkv[:, C + head * HS : C + (head + 1) * HS]
    scores = queries @ keys.T * np.float32(HS**-0.5)
    scores[~np.tri(len(ids), dtype=bool)] = -np.inf
    weights: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _float32(values: np.ndarray) -> np.ndarray:
    return from_bfloat16(values) if values.dtype == np.uint16 else values
