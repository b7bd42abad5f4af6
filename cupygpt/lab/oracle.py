"""What each op computes, in plain NumPy: the formulas, written without regard to speed or memory.

Every function computes in the dtype of its inputs. Its float64 result is what the devices are
compared with; its float32 result shows the error that plain rounding makes. Nothing here shares
code with cupygpt/ops. tests/lab/test_oracle.py checks the gradients by central differences.
"""

import math
from collections.abc import Callable

import numpy as np

from cupygpt.arrays import Array


def encoder_forward(tokens: Array, wte: Array, wpe: Array) -> Array:
    """Embeddings of tokens and positions, (B, T, C)."""
    return wte[tokens] + wpe[: tokens.shape[1]]


def encoder_backward(tokens: Array, dout: Array, Vp: int, maxT: int) -> tuple[Array, Array]:
    """dwte (Vp, C) and dwpe (maxT, C)."""
    _, T, C = dout.shape
    dwte, dwpe = np.zeros((Vp, C), dout.dtype), np.zeros((maxT, C), dout.dtype)
    np.add.at(dwte, tokens, dout)
    dwpe[:T] = dout.sum(axis=0)
    return dwte, dwpe


def layernorm_forward(inp: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
    """out, mean, rstd."""
    mean = inp.mean(axis=-1)
    rstd = (inp.var(axis=-1) + 1e-5) ** -0.5
    return (inp - mean[..., None]) * rstd[..., None] * weight + bias, mean, rstd


def layernorm_backward(dout: Array, inp: Array, weight: Array) -> tuple[Array, Array, Array]:
    """dinp, dweight, dbias."""
    _, mean, rstd = layernorm_forward(inp, weight, np.zeros_like(weight))
    normed = (inp - mean[..., None]) * rstd[..., None]
    # d out_i / d inp_j = weight_i rstd (delta_ij - 1/C - normed_i normed_j / C)
    scaled = dout * weight
    dinp = scaled - scaled.mean(axis=-1, keepdims=True)
    dinp = dinp - normed * (scaled * normed).mean(axis=-1, keepdims=True)
    rows = tuple(range(inp.ndim - 1))
    return dinp * rstd[..., None], (dout * normed).sum(axis=rows), dout.sum(axis=rows)


def gelu_forward(inp: Array) -> Array:
    """GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return 0.5 * inp * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (inp + 0.044715 * inp**3)))


def gelu_backward(dout: Array, inp: Array) -> Array:
    """dout times the derivative of GELU at inp."""
    scale = math.sqrt(2.0 / math.pi)
    tanh = np.tanh(scale * (inp + 0.044715 * inp**3))
    inner = scale * (1.0 + 3.0 * 0.044715 * inp**2)
    return dout * (0.5 * (1.0 + tanh) + 0.5 * inp * (1.0 - tanh**2) * inner)


def column_sums(dout: Array) -> Array:
    """The sum of the rows of a matrix (..., OC)."""
    return dout.reshape(-1, dout.shape[-1]).sum(axis=0)


def classifier(logits: Array, targets: Array, V: int, dloss: float) -> tuple[Array, Array]:
    """losses (N,) and dlogits (N, Vp)."""
    real = logits[:, :V] - logits[:, :V].max(axis=1, keepdims=True)
    probs = np.exp(real) / np.exp(real).sum(axis=1, keepdims=True)
    losses = np.zeros(len(logits), logits.dtype)
    dlogits = np.zeros_like(logits)
    for n, target in enumerate(targets):
        if target >= 0:
            losses[n] = np.log(np.exp(real[n]).sum()) - real[n, target]
            dlogits[n, :V] = probs[n] * dloss
            dlogits[n, target] -= dloss
    return losses, dlogits


def adamw(
    params: Array,
    m: Array,
    v: Array,
    grads: Array,
    decays: Array,
    *,
    grad_norm: float,
    lr: float,
    step: int,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_clip: float,
) -> tuple[Array, Array, Array]:
    """params, m and v after update `step`, counted from 1; decays (P,) holds 0 or 1."""
    if grad_clip and grad_norm > grad_clip:
        grads = grads * (grad_clip / grad_norm)
    m = beta1 * m + (1.0 - beta1) * grads
    v = beta2 * v + (1.0 - beta2) * grads**2
    unbiased_m, unbiased_v = m / (1.0 - beta1**step), v / (1.0 - beta2**step)
    update = unbiased_m / (np.sqrt(unbiased_v) + 1e-8) + weight_decay * decays * params
    return params - lr * update, m, v


def philox_words(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as Salmon et al. 2011 describe it, in Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            product1 >> 32 ^ c1 ^ k0,
            product1 % 2**32,
            product0 >> 32 ^ c3 ^ k1,
            product0 % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def dropout(inp: Array, seed: int, step: int, site: int, p: float) -> Array:
    """Flat `inp` with dropout: word i % 4 of counter i // 4 decides about element i."""
    out = np.zeros_like(inp)
    for i in range(inp.size):
        index = i // 4
        counter = [index % 2**32, index >> 32, step, site]
        word = philox_words(counter, [seed % 2**32, seed >> 32])[i % 4]
        if word >= p * 2**32:
            out[i] = inp[i] / (1.0 - p)
    return out


def sampling_probabilities(logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """Probability of each id."""
    probs = np.exp((logits - logits.max()) / temperature)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = order[:top_k] if top_k else order
    total, running = sum(probs[i] for i in kept), 0.0
    nucleus = []
    for i in kept:
        nucleus.append(i)
        running += probs[i]
        if running >= top_p * total:
            break
    result = np.zeros(len(logits))
    for i in nucleus:
        result[i] = probs[i] / running
    return result


def attention_forward(
    qkv: Array, NH: int, rounded: Callable[[Array], Array] = np.copy
) -> tuple[Array, Array]:
    """out (B, T, C) and lse (B, NH, T); `rounded` is applied to the operands of products."""
    queries, keys, values = (rounded(x) for x in split_heads(qkv, NH))
    scores = causal_scores(queries, keys)
    largest = scores.max(axis=-1, keepdims=True)
    probs = np.exp(scores - largest)
    denominator = probs.sum(axis=-1, keepdims=True)
    out = rounded(probs) @ values / denominator
    return join_heads([out]), (largest + np.log(denominator))[..., 0]


def attention_backward(
    dout: Array,
    qkv: Array,
    out: Array,
    lse: Array,
    NH: int,
    rounded: Callable[[Array], Array] = np.copy,
) -> Array:
    """dqkv (B, T, 3C)."""
    queries, keys, values = (rounded(x) for x in split_heads(qkv, NH))
    (douts,) = split_heads(dout, NH, parts=1)
    (outs,) = split_heads(out, NH, parts=1)
    scale = 1.0 / math.sqrt(queries.shape[-1])
    probs = np.exp(causal_scores(queries, keys) - lse[..., None])
    dprobs = rounded(douts) @ values.swapaxes(-1, -2)
    dscores = rounded(probs * (dprobs - (douts * outs).sum(axis=-1, keepdims=True)))
    dqueries = scale * (dscores @ keys)
    dkeys = scale * (dscores.swapaxes(-1, -2) @ queries)
    dvalues = rounded(probs).swapaxes(-1, -2) @ rounded(douts)
    return join_heads([dqueries, dkeys, dvalues])


def causal_scores(queries: Array, keys: Array) -> Array:
    """Scaled scores (B, NH, T, T), -inf where the key is later than the query."""
    T, HS = queries.shape[-2:]
    scores = queries @ keys.swapaxes(-1, -2) / math.sqrt(HS)
    scores[..., ~np.tri(T, dtype=bool)] = -np.inf
    return scores


def split_heads(array: Array, NH: int, parts: int = 3) -> list[Array]:
    """(B, T, parts * C) as `parts` arrays (B, NH, T, HS)."""
    B, T, width = array.shape
    heads = array.reshape(B, T, parts, NH, width // parts // NH)
    return list(heads.transpose(2, 0, 3, 1, 4))


def join_heads(parts: list[Array]) -> Array:
    """The inverse of split_heads."""
    B, _, T, _ = parts[0].shape
    return np.stack(parts).transpose(1, 3, 0, 2, 4).reshape(B, T, -1)
