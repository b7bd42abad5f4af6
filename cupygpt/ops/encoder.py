"""Token plus position embedding."""

import numpy as np

from cupygpt.ops.host import on_host
from cupygpt.tensors import Array


def encoder_forward(out: Array, tokens: Array, wte: Array, wpe: Array) -> None:
    """out[b, t] = wte[tokens[b, t]] + wpe[t].

    Written: out (B, T, C) floatX. Read: tokens (B, T) int32 in [0, V), wte (Vp, C), wpe (maxT, C)
    with maxT >= T. After llm.c train_gpt2.c, encoder_forward.
    """
    assert on_host(out)
    T = tokens.shape[1]
    np.take(wte, tokens, axis=0, out=out, mode="clip")  # "raise" would copy; ids are checked before
    out += wpe[:T]


def token_order(tokens: np.ndarray) -> np.ndarray:
    """Positions (B * T,) int32 that sort the tokens: made on the host, for encoder_backward."""
    return np.argsort(tokens, axis=None, kind="stable").astype(np.int32)


def encoder_backward(
    dwte: Array, dwpe: Array, dout: Array, tokens: Array, order: Array
) -> None:
    """dwte[tokens[b, t]] += dout[b, t] and dwpe[t] += dout[b, t], summed in a fixed order.

    Accumulated: dwte (Vp, C), dwpe (maxT, C) floatX. Read: dout (B, T, C), tokens (B, T) int32,
    order (B * T,) int32 as `token_order` makes it: rows of one token become neighbours, so that
    they are added up in a fixed order without atomics.
    """
    assert on_host(dwte)
    T, C = dout.shape[1:]
    dwpe[:T] += dout.sum(axis=0)
    sorted_tokens = tokens.ravel()[order]
    firsts = np.flatnonzero(np.diff(sorted_tokens, prepend=-1))
    dwte[sorted_tokens[firsts]] += np.add.reduceat(dout.reshape(-1, C)[order], firsts, axis=0)
