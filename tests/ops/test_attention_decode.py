"""Attention over a cache, for the generation of text, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from support.devices import Device

from cupygpt.lab import oracle
from cupygpt.ops import attention
from cupygpt.ops.attention import attention_decode, decode_partials


def decode(
    dev: Device, cache: Any, qkv: np.ndarray, rows: list[int], positions: list[int],
    starts: list[int], NH: int,
) -> np.ndarray:  # fmt: skip
    """One pass of attention_decode over new positions, given by their qkv (N, 3C)."""
    N, C, HS = len(rows), qkv.shape[1] // 3, cache.shape[-1]
    out = dev.output((N, C))
    partials = dev.output(decode_partials(N, NH, HS, cache.shape[-2]), "float32")
    where = (dev.input(values, "int32") for values in (rows, positions, starts))
    attention_decode(out, cache, dev.input(qkv), *where, NH, partials)
    return dev.values(out)


def check_decoding_in_pieces(dev: Device, rng: Generator, NH: int, HS: int) -> None:
    """A prompt, single tokens, and a piece that ends at the cache's last position but two."""
    pieces, maxT = [19, 1, 1, 16], 39
    T, C = sum(pieces), NH * HS
    qkv = 1.5 * rng.standard_normal((1, T, 3 * C))
    values = dev.values(dev.array(qkv))
    cache = dev.output((3, 2, NH, maxT, HS))
    found, start = [], 0
    for piece in pieces:
        new = list(range(start, start + piece))
        found.append(decode(dev, cache, values[0, new], [1] * piece, new, [start] * piece, NH))
        start += piece

    want, _ = oracle.attention_forward(values, NH)
    plain, _ = oracle.attention_forward(values.astype(np.float32), NH)
    dev.agree("out", np.concatenate(found), want[0], plain[0], T + HS)
    others = dev.values(cache)[[0, 2]]
    assert np.isnan(others).all()  # the rows of other texts, and what lies behind, are untouched
    assert np.isnan(dev.values(cache)[1, :, :, T:]).all()


@pytest.mark.parametrize(("NH", "HS", "split_keys"), [(1, 8, 1024), (2, 80, 1024), (1, 8, 9)])
def test_decoding_in_pieces_equals_attention(
    dev: Device, rng: Generator, monkeypatch: pytest.MonkeyPatch, NH: int, HS: int, split_keys: int
) -> None:
    """With few keys for a split, blocks share a head, and most begin behind the position."""
    monkeypatch.setattr(attention, "SPLIT_KEYS", split_keys)
    check_decoding_in_pieces(dev, rng, NH, HS)


def test_texts_of_different_lengths_decode_together(dev: Device, rng: Generator) -> None:
    """Three prompts in one pass, in any order of rows, then one token of each."""
    NH, HS, rows, lengths = 2, 8, [2, 0, 1], [5, 1, 9]
    texts = [dev.values(dev.array(rng.standard_normal((n + 1, 3 * NH * HS)))) for n in lengths]
    cache = dev.output((3, 2, NH, 12, HS))
    packed = np.concatenate([text[:-1] for text in texts])
    of_text = [text for text, n in enumerate(lengths) for _ in range(n)]
    positions = [t for n in lengths for t in range(n)]
    prompts = decode(
        dev, cache, packed, [rows[i] for i in of_text], positions, [0] * len(positions), NH
    )
    last = np.stack([text[-1] for text in texts])
    steps = decode(dev, cache, last, rows, lengths, lengths, NH)
    for i, text in enumerate(texts):
        want, _ = oracle.attention_forward(text[None], NH)
        plain, _ = oracle.attention_forward(text[None].astype(np.float32), NH)
        found = np.concatenate([prompts[np.array(of_text) == i], steps[i : i + 1]])
        dev.agree(f"text {i}", found, want[0], plain[0], len(text) + HS)
