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


def encoder_backward(dwte: Array, dwpe: Array, dout: Array, tokens: Array) -> None:
    """dwte[tokens[b, t]] += dout[b, t] and dwpe[t] += dout[b, t], summed in a fixed order.

    Accumulated: dwte (Vp, C), dwpe (maxT, C) floatX. Read: dout (B, T, C), tokens (B, T) int32.
    """
    assert on_host(dwte)
    T, C = dout.shape[1:]
    dwpe[:T] += dout.sum(axis=0)
    # Rows sorted by token make each token's rows neighbours: one sum per token, no scatter-add.
    order = np.argsort(tokens, axis=None, kind="stable")
    sorted_tokens = tokens.ravel()[order]
    firsts = np.flatnonzero(np.diff(sorted_tokens, prepend=-1))
    dwte[sorted_tokens[firsts]] += np.add.reduceat(dout.reshape(-1, C)[order], firsts, axis=0)
