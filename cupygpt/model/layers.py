"""The layers of a model as views of its tensors, so that a pass reads like its formula."""

from dataclasses import dataclass

from cupygpt.arrays import Array
from cupygpt.config import GPTConfig
from cupygpt.model.tensors import Tensors


@dataclass(frozen=True)
class Norm:
    """One LayerNorm: output and statistics, parameters, and their gradients (None in evaluation)."""

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
