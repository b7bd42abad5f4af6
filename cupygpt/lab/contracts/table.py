"""The contracts of the lab: one table for rungs, exercises and learners' kernels."""

from typing import Any, cast

import numpy as np

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.device.precision import BF16, FP32
from cupygpt.lab import oracle
from cupygpt.lab.contracts.contract import Arrays, Contract, Empty, Sizes, Values
from cupygpt.ops.adamw import EPSILON as ADAMW_EPSILON
from cupygpt.ops.adamw import adamw
from cupygpt.ops.attention import attention_forward
from cupygpt.ops.bias import MAX_CHUNKS, bias_backward
from cupygpt.ops.classifier import classifier
from cupygpt.ops.gelu import gelu_bias_backward, gelu_forward
from cupygpt.ops.layernorm import EPSILON, layernorm_forward, residual_layernorm_forward

# ---- elementwise and rows -----------------------------------------------------------------------


def _gelu_inputs(s: Sizes, rng: np.random.Generator) -> Values:
    inp = 3.0 * rng.standard_normal(s["N"])
    inp[:8] = [0.0, -0.0, 1.0, -1.0, 12.0, -12.0, 40.0, -40.0]  # the far tails, and zero
    return {"inp": inp}


GELU_FORWARD = Contract(
    "gelu_forward",
    "out = gelu(inp), N elements",
    "out:floatX* inp:floatX* N:i64",
    awkward=({"N": 8}, {"N": 24}, {"N": 2056}),
    large={"N": 16384 * 768},
    inputs=_gelu_inputs,
    want=lambda s, v: {"out": oracle.gelu_forward(v["inp"])},
    op=gelu_forward,
    sizes_of=lambda a: {"N": a["out"].size},
    shapes=lambda s: {"out": (s["N"],)},
    axes=({"N": (1 << 15, 1 << 16)},),
    terms=lambda s: 1,
    own=lambda a, s, empty: gelu_forward(a["out"], a["inp"]),
    written=("out",),
)


def _gelu_backward(s: Sizes, v: Values) -> Values:
    dinp = oracle.gelu_backward(v["dinp"], v["inp"])
    return {"dinp": dinp, "dbias": oracle.column_sums(dinp)}


GELU_BIAS_BACKWARD = Contract(
    "gelu_bias_backward",
    "dinp (N, OC) *= gelu'(inp), and dbias += the sum of the new rows",
    "dinp:floatX* dbias:f32* inp:floatX* N:i32 OC:i32",
    awkward=({"N": 1, "OC": 8}, {"N": 37, "OC": 1056}, {"N": 300, "OC": 40}),
    large={"N": 1024, "OC": 3072},
    inputs=lambda s, rng: {
        "dinp": rng.standard_normal((s["N"], s["OC"])),
        "inp": 3.0 * rng.standard_normal((s["N"], s["OC"])),
    },
    want=_gelu_backward,
    shapes=lambda s: {"dbias": (s["OC"],)},
    terms=lambda s: s["N"] + 16,
    own=lambda a, s, empty: gelu_bias_backward(
        a["dinp"], a["dbias"], a["inp"], a["inp"], empty(MAX_CHUNKS * s["OC"])
    ),
    accumulated=("dbias",),
    updated=("dinp",),
)

_ROWS: tuple[Sizes, ...] = ({"N": 1, "C": 8}, {"N": 7, "C": 40}, {"N": 133, "C": 776})


def _rows_of(a: Arrays) -> dict[str, int]:
    C = int(a["weight"].size)
    return {"N": a["out"].size // C, "C": C}


_LARGE_ROWS = {"N": 16384, "C": 768}


def _layernorm_inputs(s: Sizes, rng: np.random.Generator) -> Values:
    inp = 2.0 + rng.standard_normal((s["N"], s["C"]))  # a mean far from 0
    inp[:, 3] = 0.0  # counts, like any other number
    return {
        "inp": inp,
        "weight": rng.standard_normal(s["C"]),
        "bias": rng.standard_normal(s["C"]),
    }


def _layernorm(s: Sizes, v: Values) -> Values:
    out, mean, rstd = oracle.layernorm_forward(v["inp"], v["weight"], v["bias"])
    return {"out": out, "mean": mean, "rstd": rstd}


LAYERNORM_FORWARD = Contract(
    "layernorm_forward",
    "N rows of C channels get mean 0 and variance 1, times weight, plus bias",
    "out:floatX* mean:f32* rstd:f32* inp:floatX* weight:floatX* bias:floatX* N:i32 C:i32 "
    "epsilon:f32",
    awkward=_ROWS,
    large=_LARGE_ROWS,
    inputs=_layernorm_inputs,
    want=_layernorm,
    op=layernorm_forward,
    sizes_of=_rows_of,
    shapes=lambda s: {"out": (s["N"], s["C"]), "mean": (s["N"],), "rstd": (s["N"],)},
    axes=({"N": (512, 1024)},),
    terms=lambda s: s["C"],
    own=lambda a, s, empty: layernorm_forward(
        a["out"], a["mean"], a["rstd"], a["inp"], a["weight"], a["bias"]
    ),
    written=("out", "mean", "rstd"),
    constants={"epsilon": EPSILON},
)


def _residual_inputs(s: Sizes, rng: np.random.Generator) -> Values:
    row, rows = (s["C"],), (s["N"], s["C"])
    names = {"inp1": rows, "inp2": rows, "weight": row, "bias": row}
    return {name: rng.standard_normal(shape) for name, shape in names.items()}


def _residual_layernorm(s: Sizes, v: Values) -> Values:
    return _normed_sum(v, v["inp1"] + v["inp2"])


def _rounded_residual_layernorm(s: Sizes, v: Values, dtype: str) -> Values:
    residual = v["inp1"] + v["inp2"]  # backward reads it as it is stored
    return _normed_sum(v, _bfloat16(residual) if dtype == "bfloat16" else residual)


def _normed_sum(v: Values, residual: np.ndarray) -> Values:
    out, mean, rstd = oracle.layernorm_forward(residual, v["weight"], v["bias"])
    return {"residual": residual, "out": out, "mean": mean, "rstd": rstd}


RESIDUAL_LAYERNORM_FORWARD = Contract(
    "residual_layernorm_forward",
    "residual = inp1 + inp2, and the LayerNorm of the residual as it is stored",
    "residual:floatX* out:floatX* mean:f32* rstd:f32* inp1:floatX* inp2:floatX* "
    "weight:floatX* bias:floatX* N:i32 C:i32 epsilon:f32",
    awkward=_ROWS,
    large=_LARGE_ROWS,
    inputs=_residual_inputs,
    want=_residual_layernorm,
    plain=_rounded_residual_layernorm,
    op=residual_layernorm_forward,
    sizes_of=_rows_of,
    shapes=lambda s: {
        **dict.fromkeys(("residual", "out"), (s["N"], s["C"])),
        **dict.fromkeys(("mean", "rstd"), (s["N"],)),
    },
    axes=({"N": (512, 1024)},),
    terms=lambda s: s["C"],
    own=lambda a, s, empty: residual_layernorm_forward(
        *(a[n] for n in ("residual", "out", "mean", "rstd", "inp1", "inp2", "weight", "bias"))
    ),
    written=("residual", "out", "mean", "rstd"),
    constants={"epsilon": EPSILON},
)

DLOSS = 1.0 / 96


def _cross_entropy_inputs(s: Sizes, rng: np.random.Generator) -> Values:
    logits = 4.0 * rng.standard_normal((s["N"], s["Vp"]))
    logits[:, s["V"] :] = 1e6  # padding must not count, whatever it holds
    logits[0, : s["V"]] += 100.0
    targets = rng.integers(0, s["V"], s["N"])
    targets[0], targets[-1] = s["V"] - 1, 0
    if s["N"] > 2:
        targets[1] = -1
    return {"logits": logits, "targets": targets}


def _cross_entropy(s: Sizes, v: Values) -> Values:
    losses, dlogits = oracle.classifier(v["logits"], v["targets"], s["V"], DLOSS)
    return {"losses": losses, "logits": dlogits}


CROSS_ENTROPY = Contract(
    "cross_entropy",
    "losses[n] += the loss of row n, and the logits become their gradient times dloss; columns V "
    "and up get 0, and so do rows with target -1",
    "losses:f32* logits:floatX* targets:i32* N:i32 V:i32 Vp:i32 dloss:f32",
    awkward=(
        {"N": 3, "V": 65, "Vp": 128},
        {"N": 70, "V": 257, "Vp": 384},
        {"N": 2, "V": 2, "Vp": 128},
    ),
    large={"N": 1024, "V": 50257, "Vp": 50304},
    inputs=_cross_entropy_inputs,
    want=_cross_entropy,
    op=classifier,
    sizes_of=lambda a: {"N": len(a["logits"]), "V": a["V"], "Vp": a["logits"].shape[1]},
    shapes=lambda s: {"losses": (s["N"],)},
    axes=({"N": (64, 128)}, {"Vp": (1024, 2048), "V": (1024, 2048)}),
    terms=lambda s: s["V"],
    own=lambda a, s, empty: classifier(a["losses"], a["logits"], a["targets"], s["V"], DLOSS),
    accumulated=("losses",),
    updated=("logits",),
    constants={"dloss": DLOSS},
)

COLUMN_SUM = Contract(
    "column_sum",
    "dbias += the sum of the N rows of dout",
    "dbias:f32* dout:floatX* N:i32 OC:i32",
    awkward=({"N": 1, "OC": 8}, {"N": 300, "OC": 40}, {"N": 37, "OC": 1056}),
    large={"N": 8192, "OC": 768},
    inputs=lambda s, rng: {"dout": rng.standard_normal((s["N"], s["OC"]))},
    want=lambda s, v: {"dbias": oracle.column_sums(v["dout"])},
    op=bias_backward,
    sizes_of=lambda a: {"N": a["dout"].size // a["dbias"].size, "OC": a["dbias"].size},
    shapes=lambda s: {"dbias": (s["OC"],)},
    terms=lambda s: s["N"],
    own=lambda a, s, empty: bias_backward(a["dbias"], a["dout"], empty(MAX_CHUNKS * s["OC"])),
    accumulated=("dbias",),
)

# ---- products -----------------------------------------------------------------------------------


def _matmul(name: str, dtype: str) -> Contract:
    return Contract(
        name,
        "out (M, N) = a (M, K) times b (N, K) transposed; out and sums in float32",
        "out:f32* a:floatX* b:floatX* M:i32 N:i32 K:i32",
        awkward=(
            {"M": 1, "N": 8, "K": 8},
            {"M": 37, "N": 72, "K": 40},
            {"M": 130, "N": 136, "K": 24},
        ),
        large={"M": 2048, "N": 2048, "K": 2048},
        inputs=lambda s, rng: {
            "a": rng.standard_normal((s["M"], s["K"])),
            "b": rng.standard_normal((s["N"], s["K"])),
        },
        want=lambda s, v: {"out": v["a"] @ v["b"].T},
        shapes=lambda s: {"out": (s["M"], s["N"])},
        axes=({"M": (128, 256)}, {"N": (128, 256)}, {"K": (32, 64)}),
        terms=lambda s: 4 * s["K"],  # a tensor core cuts off where others round
        written=("out",),
        dtypes=(dtype,),
    )


MATMUL = _matmul("matmul", "float32")
MATMUL_BF16 = _matmul("matmul_bf16", "bfloat16")


def _attention(s: Sizes, v: Values) -> Values:
    out, lse = oracle.attention_forward(v["qkv"], s["NH"])
    return {"out": out, "lse": lse}


def _rounded_attention(s: Sizes, v: Values, dtype: str) -> Values:
    rounded = _bfloat16 if dtype == "bfloat16" else np.copy  # of the probabilities
    out, lse = oracle.attention_forward(v["qkv"], s["NH"], rounded)
    return {"out": out, "lse": lse}


def _attention_sizes(a: Arrays) -> dict[str, int]:
    B, T, C = a["out"].shape
    return {"B": B, "T": T, "NH": a["NH"], "HS": C // a["NH"]}


def _own_attention(a: Arrays, s: Sizes, empty: Empty) -> None:
    precision = BF16 if a["out"].itemsize == 2 else FP32
    attention_forward(a["out"], a["lse"], a["qkv"], s["NH"], precision=precision)


ATTENTION_FORWARD = Contract(
    "attention_forward",
    "out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s for each head, of qkv "
    "(B, T, 3, NH, HS); lse (B, NH, T) = log of the sum of exp(scaled score)",
    "out:floatX* lse:f32* qkv:floatX* B:i32 T:i32 NH:i32",
    awkward=(
        {"B": 1, "T": 1, "NH": 1, "HS": 16},
        {"B": 2, "T": 37, "NH": 2, "HS": 32},
        {"B": 1, "T": 150, "NH": 1, "HS": 16},
    ),
    large={"heads": 48, "B": 4, "T": 1024, "NH": 12, "HS": 64},  # heads = B NH
    inputs=lambda s, rng: {
        "qkv": 1.5 * rng.standard_normal((s["B"], s["T"], 3 * s["NH"] * s["HS"]))
    },
    want=_attention,
    plain=_rounded_attention,
    op=attention_forward,
    sizes_of=_attention_sizes,
    shapes=lambda s: {
        "out": (s["B"], s["T"], s["NH"] * s["HS"]),
        "lse": (s["B"], s["NH"], s["T"]),
    },
    axes=({"T": (128, 256, 384)}, {"heads": (1, 2), "B": (1, 2), "NH": (1, 1)}),
    terms=lambda s: s["T"] + s["HS"],
    own=_own_attention,
    written=("out", "lse"),
)

# ---- the optimizer ------------------------------------------------------------------------------

_SETTINGS: dict[str, float] = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "grad_clip": 1.0}
_RATE, _STEP, _NORM = 1e-2, 3, 4.0


def _adamw_inputs(s: Sizes, rng: np.random.Generator) -> Values:
    corrections = [1.0 - _SETTINGS[beta] ** _STEP for beta in ("beta1", "beta2")]
    return {
        "params": rng.standard_normal(s["N"]),
        "m": 0.1 * rng.standard_normal(s["N"]),
        "v": 0.1 * rng.random(s["N"]),
        "grads": rng.standard_normal(s["N"]),
        "grad_norm": np.array([_NORM]),
        "controls": np.array([_RATE, *corrections]),
    }


def _adamw(s: Sizes, v: Values) -> Values:
    arrays = (v["params"], v["m"], v["v"], v["grads"], np.ones(s["N"]))
    new = oracle.adamw(*arrays, grad_norm=_NORM, lr=_RATE, step=_STEP, **_SETTINGS)
    return dict(zip(("params", "m", "v"), new, strict=True))


def _own_adamw(a: Arrays, s: Sizes, empty: Empty) -> None:
    names = ("params", "m", "v", "grads", "grad_norm", "controls")
    params, m, v, grads, grad_norm, controls = (a[name] for name in names)
    segments, settings = [(0, s["N"], True)], cast(Any, _SETTINGS)
    adamw(params, m, v, grads, grad_norm, controls, segments, **settings)


ADAMW = Contract(
    "adamw",
    "one update of N parameters, all with weight decay; gradients are clipped by grad_norm. "
    "controls: learning rate, 1 - beta1^t, 1 - beta2^t",
    "params:f32* m:f32* v:f32* grads:f32* grad_norm:f32* controls:f32* N:i64 beta1:f32 beta2:f32 "
    "epsilon:f32 weight_decay:f32 grad_clip:f32",
    awkward=({"N": 8}, {"N": 40}, {"N": 2056}),
    large={"N": 1 << 24},
    inputs=_adamw_inputs,
    want=_adamw,
    op=adamw,
    sizes_of=lambda a: {"N": a["params"].size},
    shapes=lambda s: {},
    axes=({"N": (1 << 15, 1 << 16)},),
    terms=lambda s: 2,
    own=_own_adamw,
    updated=("params", "m", "v"),
    dtypes=("float32",),
    constants={"epsilon": ADAMW_EPSILON, **_SETTINGS},
)

CONTRACTS = {
    contract.name: contract
    for contract in (
        GELU_FORWARD,
        GELU_BIAS_BACKWARD,
        LAYERNORM_FORWARD,
        RESIDUAL_LAYERNORM_FORWARD,
        CROSS_ENTROPY,
        COLUMN_SUM,
        MATMUL,
        MATMUL_BF16,
        ATTENTION_FORWARD,
        ADAMW,
    )
}
"""By name."""


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return from_bfloat16(to_bfloat16(values)).astype(values.dtype)
