"""Every buffer of a run in a table, and the arenas that are cut from it.

An arena is one flat allocation; its tensors are named views. The parameters lie in llm.c's file
order without gaps, so the arena is the body of a model file, and gradients and moments share the
layout. Activations and scratch start at multiples of 256 bytes, as memory of a GPU does: enough
for 128-bit accesses and whole cache lines.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cupygpt.arrays import Array
from cupygpt.config import GPTConfig
from cupygpt.ops.attention import LEAST_ROW_GROUP, decode_partials
from cupygpt.ops.lm_head import STATISTICS_PER_ROW

ALIGNMENT_BYTES = 256
CPU_LOGITS_ROWS = 256
"""Rows of logits that exist at once on the CPU: 256 x 50304 float32 are 51 MB."""
PREFILL_TOKENS = 512
"""Tokens of prompts that go through the model together: enough for fast products."""
STEP_SLOTS = 64
"""Steps whose random numbers a GPU gets at once."""
GPU_LOGITS_ROWS = 8192
"""The same on a GPU, where fewer and larger products count: 8192 x 50304 float32 are 1.65 GB."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one buffer; `floatX` stands for the storage of the run's precision.

    `decay`: weight decay applies. `stacked`: the first axis is the layers, or has length 1 if all
    layers share one buffer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "floatX"
    decay: bool = False
    stacked: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Tensors:
    """Named views of one arena, reached as attributes: `params.wte`, `acts.qkv[layer]`."""

    def __init__(
        self, flat: Array, views: dict[str, Array], specs: Sequence[TensorSpec] = ()
    ) -> None:
        self.flat = flat
        self._views = views
        self._stacked = {spec.name for spec in specs if spec.stacked}

    def __getattr__(self, name: str) -> Array:
        try:
            return self._views[name]
        except KeyError:
            raise AttributeError(f"no tensor named {name!r} in this arena") from None

    def items(self) -> Iterable[tuple[str, Array]]:
        """(name, view) pairs in table order."""
        return self._views.items()

    def layer(self, index: int) -> "Tensors":
        """The slices of the stacked tensors for one layer; a shared buffer is the slice of each."""
        slices = {
            name: view[index if index < len(view) else 0]
            for name, view in self.items()
            if name in self._stacked
        }
        return Tensors(self.flat, slices)

    def outside_layers(self) -> list[Array]:
        """The tensors that belong to no layer, in table order."""
        return [view for name, view in self.items() if name not in self._stacked]


def parameter_specs(config: GPTConfig) -> list[TensorSpec]:
    """The 16 parameter tensors in file order; weight decay on the six matrices (llm.c)."""
    L, C, Vp, maxT = config.L, config.C, config.Vp, config.maxT
    return [
        TensorSpec("wte", (Vp, C), decay=True),
        TensorSpec("wpe", (maxT, C), decay=True),
        TensorSpec("ln1w", (L, C), stacked=True),
        TensorSpec("ln1b", (L, C), stacked=True),
        TensorSpec("qkvw", (L, 3 * C, C), decay=True, stacked=True),
        TensorSpec("qkvb", (L, 3 * C), stacked=True),
        TensorSpec("attprojw", (L, C, C), decay=True, stacked=True),
        TensorSpec("attprojb", (L, C), stacked=True),
        TensorSpec("ln2w", (L, C), stacked=True),
        TensorSpec("ln2b", (L, C), stacked=True),
        TensorSpec("fcw", (L, 4 * C, C), decay=True, stacked=True),
        TensorSpec("fcb", (L, 4 * C), stacked=True),
        TensorSpec("fcprojw", (L, C, 4 * C), decay=True, stacked=True),
        TensorSpec("fcprojb", (L, C), stacked=True),
        TensorSpec("lnfw", (C,)),
        TensorSpec("lnfb", (C,)),
    ]


def activation_specs(
    config: GPTConfig, B: int, T: int, *, recompute: int, training: bool
) -> list[TensorSpec]:
    """What forward leaves for backward.

    `recompute` 1 keeps one GELU output for all layers, 2 also one output of LN1 and LN2 each;
    evaluation alone (`training` false) keeps one layer of everything.
    """
    L, C, NH = config.L, config.C, config.NH
    saved = L if training else 1
    norms = saved if recompute < 2 else 1
    gelus = saved if recompute < 1 else 1
    return [
        TensorSpec("encoded", (B, T, C)),
        TensorSpec("ln1", (norms, B, T, C), stacked=True),
        TensorSpec("ln1_mean", (saved, B, T), "float32", stacked=True),
        TensorSpec("ln1_rstd", (saved, B, T), "float32", stacked=True),
        TensorSpec("qkv", (saved, B, T, 3 * C), stacked=True),
        TensorSpec("atty", (saved, B, T, C), stacked=True),
        TensorSpec("lse", (saved, B, NH, T), "float32", stacked=True),
        TensorSpec("residual2", (saved, B, T, C), stacked=True),
        TensorSpec("ln2", (norms, B, T, C), stacked=True),
        TensorSpec("ln2_mean", (saved, B, T), "float32", stacked=True),
        TensorSpec("ln2_rstd", (saved, B, T), "float32", stacked=True),
        TensorSpec("fch", (saved, B, T, 4 * C), stacked=True),
        TensorSpec("fch_gelu", (gelus, B, T, 4 * C), stacked=True),
        TensorSpec("residual3", (saved, B, T, C), stacked=True),
        TensorSpec("lnf", (B, T, C)),
        TensorSpec("lnf_mean", (B, T), "float32"),
        TensorSpec("lnf_rstd", (B, T), "float32"),
        TensorSpec("losses", (B, T), "float32"),
    ]


def scratch_specs(
    config: GPTConfig, B: int, T: int, *, training: bool, logits_rows: int
) -> list[TensorSpec]:
    """Buffers whose content lives within one layer or one chunk of the head.

    `dbt4c` serves as the gradient of the MLP's hidden layer, and then as that of the attention:
    its first 3 B T C elements are `dqkv`, the rest is `datty`. `row_sums` holds sums over
    few rows: of dqkv in attention's backward, and of dout in the embedding's, for tokens that occur
    often.
    """
    specs = [
        TensorSpec("btc", (B, T, config.C)),
        TensorSpec("logits", (logits_rows, config.Vp)),
        TensorSpec("lm_head_statistics", (STATISTICS_PER_ROW * logits_rows,), "float32"),
    ]
    if training:
        specs += [
            TensorSpec("dresidual", (B, T, config.C)),
            TensorSpec("dbtc", (B, T, config.C)),
            TensorSpec("dbt4c", (4 * B * T * config.C,)),
            TensorSpec("partials", (1024 * config.C,), "float32"),
            TensorSpec("lse_delta", (B, config.NH, T, 2), "float32"),
            TensorSpec("row_sums", (B, -(-T // LEAST_ROW_GROUP), 3 * config.C), "float32"),
        ]
    return specs


def decoder_specs(config: GPTConfig, rows: int) -> list[TensorSpec]:
    """Buffers for writing `rows` texts at once: keys and values of the past, and what a pass needs.

    A pass has up to PREFILL_TOKENS tokens of prompts, or one new token of each text. `uniforms` and
    `drawn` have slots for the random numbers and the tokens of several steps.
    """
    C, N = config.C, max(rows, min(PREFILL_TOKENS, rows * config.maxT))
    partials = decode_partials(rows, config.NH, config.HS, config.maxT)
    return [
        TensorSpec("cache", (config.L, rows, 2, config.NH, config.maxT, config.HS)),
        TensorSpec("residual", (2, N, C)),
        TensorSpec("norm", (N, C)),
        TensorSpec("branch", (N, C)),
        TensorSpec("qkv", (N, 3 * C)),
        TensorSpec("hidden", (2, N, 4 * C)),
        TensorSpec("statistics", (2, N), "float32"),
        TensorSpec("partials", (partials,), "float32"),
        TensorSpec("logits", (rows, config.Vp), "float32"),
        TensorSpec("prompt", (4, N), "int32"),
        TensorSpec("state", (4, rows), "int32"),
        TensorSpec("uniforms", (STEP_SLOTS, rows), "float32"),
        TensorSpec("drawn", (STEP_SLOTS, rows), "int32"),
    ]


def arena_bytes(specs: Sequence[TensorSpec], dtype_bytes: Callable[[str], int]) -> int:
    """Bytes of an aligned arena that holds `specs`."""
    return sum(_aligned(spec.size * dtype_bytes(spec.dtype)) for spec in specs)


def cut_packed(flat: Array, specs: Sequence[TensorSpec]) -> Tensors:
    """Views of a flat array, one after the other without gaps (parameters and their kin)."""
    views, start = {}, 0
    for spec in specs:
        views[spec.name] = flat[start : start + spec.size].reshape(spec.shape)
        start += spec.size
    assert start == flat.size, (start, flat.size)
    return Tensors(flat, views, specs)


def cut_aligned(flat: Array, specs: Sequence[TensorSpec], dtypes: dict[str, Any]) -> Tensors:
    """Views of a flat byte array, each starting at a multiple of ALIGNMENT_BYTES."""
    views, start = {}, 0
    for spec in specs:
        dtype = dtypes[spec.dtype]
        stop = start + spec.size * dtype.itemsize
        views[spec.name] = flat[start:stop].view(dtype).reshape(spec.shape)
        start += _aligned(stop - start)
    return Tensors(flat, views, specs)


def cut_batch_rows(tensors: Tensors, specs: Sequence[TensorSpec], rows: slice) -> Tensors:
    """Views of some batch rows. `specs` is the same table, made for that number of rows.

    The axis whose length differs is the batch axis. Tensors without one (logits, partials) stay
    whole: they are used before or after the slices run, or only on a GPU.
    """
    num_rows = rows.stop - rows.start
    views = {}
    for spec in specs:
        view = getattr(tensors, spec.name)
        for axis, (whole, size) in enumerate(zip(view.shape, spec.shape, strict=True)):
            if size < whole:
                start = rows.start * (size // num_rows)
                view = view[(slice(None),) * axis + (slice(start, start + size),)]
        views[spec.name] = view
    return Tensors(tensors.flat, views, specs)


def decay_segments(specs: Sequence[TensorSpec]) -> list[tuple[int, int, bool]]:
    """(start, stop, decay) of the flat parameters, neighbours with the same decay merged."""
    segments: list[tuple[int, int, bool]] = []
    start = 0
    for spec in specs:
        stop = start + spec.size
        if segments and segments[-1][2] == spec.decay:
            segments[-1] = (segments[-1][0], stop, spec.decay)
        else:
            segments.append((start, stop, spec.decay))
        start = stop
    return segments


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


# ---- layers: views, so that a pass reads like its formula ------------------------------


@dataclass(frozen=True)
class Norm:
    """One LayerNorm: output, statistics, parameters, and gradients (None in evaluation)."""

    out: Array
    mean: Array
    rstd: Array
    weight: Array
    bias: Array
    dweight: Array | None
    dbias: Array | None


@dataclass(frozen=True)
class Layer:
    """Layer `index`: its input `inp` (the residual), parameters, gradients and activations."""

    index: int
    inp: Array
    params: Tensors
    grads: Tensors | None
    acts: Tensors
    ln1: Norm
    ln2: Norm


def cut_layers(
    config: GPTConfig, params: Tensors, grads: Tensors | None, acts: Tensors
) -> tuple[list[Layer], Norm]:
    """The L layers, first to last, and the LayerNorm after them."""
    layers: list[Layer] = []
    for index in range(config.L):
        p, a = params.layer(index), acts.layer(index)
        g = None if grads is None else grads.layer(index)
        inp = layers[-1].acts.residual3 if layers else acts.encoded
        ln1, ln2 = _norm("ln1", p, g, a), _norm("ln2", p, g, a)
        layers.append(Layer(index, inp, p, g, a, ln1, ln2))
    return layers, _norm("lnf", params, grads, acts)


def _norm(name: str, params: Tensors, grads: Tensors | None, acts: Tensors) -> Norm:
    return Norm(
        out=getattr(acts, name),
        mean=getattr(acts, f"{name}_mean"),
        rstd=getattr(acts, f"{name}_rstd"),
        weight=getattr(params, f"{name}w"),
        bias=getattr(params, f"{name}b"),
        dweight=None if grads is None else getattr(grads, f"{name}w"),
        dbias=None if grads is None else getattr(grads, f"{name}b"),
    )
