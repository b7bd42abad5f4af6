"""GPT-2: forward and backward as a plain list of op calls over named tensors.

Written once for all devices: the ops look at where their arrays live. Pre-norm blocks, learned
positions, the output head tied to the token embedding (Radford et al. 2019; llm.c train_gpt2.c).
The head runs in chunks of rows, so that the (B, T, Vp) logits never exist as a whole. On the CPU
the layers run over parts of the batch at once, one on each core (see ops/parts.py).
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from cupygpt.arrays import Array
from cupygpt.config import GPTConfig
from cupygpt.device.batch_split import num_parts, run_parts
from cupygpt.device.precision import Precision
from cupygpt.model.tensors import Tensors, activation_specs, cut_batch_rows, scratch_specs
from cupygpt.ops.attention import attention_backward, attention_forward
from cupygpt.ops.dropout import dropout
from cupygpt.ops.encoder import encoder_backward, encoder_forward
from cupygpt.ops.gelu import gelu_forward
from cupygpt.ops.layernorm import layernorm_backward, layernorm_forward, residual_layernorm_forward
from cupygpt.ops.linear import (
    gelu_linear_backward,
    linear_backward,
    linear_forward,
    linear_gelu_forward,
)
from cupygpt.ops.lm_head import lm_head


@dataclass
class Dropout:
    """Probability of dropping, and the generator's state in device memory (see ops/dropout.py).

    `first` is the number, within the batches of all ranks, of the first element that this part of
    them holds.
    """

    p: float
    state: Array
    first: int = 0

    def apply(self, out: Array, inp: Array, micro_step: int, place: int) -> None:
        """out = dropout(inp); each (micro_step, place) of a step has a mask of its own."""
        dropout(out, inp, self.state, micro_step << 16 | place, self.p, self.first)


class GPT:
    """The buffers of one model at a fixed batch shape, and the passes over them.

    `params`, `grads`, `acts` and `scratch` follow the tables in tensors.py; `grads` is None for
    evaluation only. `recompute` is the option of that name in `activation_specs`; `precision`
    is that of the buffers.
    """

    def __init__(
        self,
        config: GPTConfig,
        params: Tensors,
        grads: Tensors | None,
        acts: Tensors,
        scratch: Tensors,
        *,
        precision: Precision,
        recompute: int = 0,
        dropout: Dropout | None = None,
    ) -> None:
        self.config = config
        self.params, self.grads = params, grads
        self.acts, self.scratch = acts, scratch
        self.recompute = recompute
        self.dropout = dropout
        self.precision = precision
        self._parts = self._cut_batch(num_parts(acts.encoded))

    def forward(self, tokens: Array, *, micro_step: int | None = None) -> None:
        """Fill acts up to lnf from tokens (B, T) int32; dropout only if `micro_step` is given."""
        run_parts(
            [partial(part._forward, tokens[rows], micro_step) for rows, part in self._in_parts()]
        )

    def _forward(self, tokens: Array, micro_step: int | None) -> None:
        """forward, for one part of the batch."""
        linear = partial(linear_forward, precision=self.precision)
        linear_gelu = partial(linear_gelu_forward, precision=self.precision)
        attention = partial(attention_forward, precision=self.precision)
        p, a, btc = self.params, self.acts, self.scratch.btc
        L = self.config.L
        encoder_forward(a.encoded, tokens, p.wte, p.wpe)
        self._drop(a.encoded, a.encoded, micro_step, place=0)
        ln1, mean, rstd = _layer(a.ln1, 0), _layer(a.ln1_mean, 0), _layer(a.ln1_rstd, 0)
        layernorm_forward(ln1, mean, rstd, a.encoded, p.ln1w[0], p.ln1b[0])
        residual = a.encoded
        for l in range(L):  # noqa: E741 - l is the layer, as in the field
            residual2, ln2 = _layer(a.residual2, l), _layer(a.ln2, l)
            qkv, atty = _layer(a.qkv, l), _layer(a.atty, l)
            linear(qkv, ln1, p.qkvw[l], p.qkvb[l])
            attention(atty, _layer(a.lse, l), qkv, self.config.NH)
            linear(btc, atty, p.attprojw[l], p.attprojb[l])
            self._drop(btc, btc, micro_step, place=2 * l + 1)
            mean, rstd = _layer(a.ln2_mean, l), _layer(a.ln2_rstd, l)
            residual_layernorm_forward(
                residual2, ln2, mean, rstd, residual, btc, p.ln2w[l], p.ln2b[l]
            )
            fch, fch_gelu = _layer(a.fch, l), _layer(a.fch_gelu, l)
            linear_gelu(fch_gelu, fch, ln2, p.fcw[l], p.fcb[l])
            linear(btc, fch_gelu, p.fcprojw[l], p.fcprojb[l])
            self._drop(btc, btc, micro_step, place=2 * l + 2)
            residual = _layer(a.residual3, l)
            if l + 1 < L:
                ln1, weight, bias = _layer(a.ln1, l + 1), p.ln1w[l + 1], p.ln1b[l + 1]
                mean, rstd = _layer(a.ln1_mean, l + 1), _layer(a.ln1_rstd, l + 1)
            else:
                ln1, weight, bias = a.lnf, p.lnfw, p.lnfb
                mean, rstd = a.lnf_mean, a.lnf_rstd
            residual_layernorm_forward(residual, ln1, mean, rstd, residual2, btc, weight, bias)

    def loss(self, targets: Array) -> None:
        """acts.losses += each token's loss, after forward; targets (B, T) int32, -1 ignored."""
        self._head(targets, dloss=None)

    def backward(
        self,
        tokens: Array,
        targets: Array,
        order: Array,
        dloss: float,
        *,
        micro_step: int | None = None,
        layer_done: Callable[[int], None] | None = None,
    ) -> None:
        """acts.losses += losses and grads += gradients of dloss * sum(losses), after forward.

        `order` is `token_order(tokens)` on the device. `layer_done` is called with each layer, the
        last first, when its gradients are queued. On a GPU that is not at once, but before attention
        in the layer below: what starts there has the many short blocks of attention beside it,
        which make room better than a matrix product does.
        """
        assert self.grads is not None
        self._head(targets, dloss)
        # Parts of a batch run at once: no layer is done before all of them are.
        parts = self._in_parts()
        during = layer_done if len(parts) == 1 else None
        run_parts([partial(part._backward, micro_step, during) for _, part in parts])
        if layer_done is not None and during is None:
            for l in reversed(range(self.config.L)):  # noqa: E741
                layer_done(l)
        dencoded = self._drop(self.scratch.dbtc, self.scratch.dresidual, micro_step, place=0)
        encoder_backward(
            self.grads.wte, self.grads.wpe, dencoded, tokens, order, self.scratch.row_sums
        )

    def _backward(self, micro_step: int | None, layer_done: Callable[[int], None] | None) -> None:
        """The layers' share of backward, for one part: gradients up to scratch.dresidual."""
        assert self.grads is not None
        linear_gradients = partial(linear_backward, precision=self.precision)
        gelu_linear_gradients = partial(gelu_linear_backward, precision=self.precision)
        p, g, a, s = self.params, self.grads, self.acts, self.scratch
        L, NH = self.config.L, self.config.NH
        dresidual, dbtc, partials = s.dresidual, s.dbtc, s.partials
        dfch, dqkv, datty = self._shared_gradients()
        # The biases of attproj and fcproj get the sum of the rows of dresidual, which the LayerNorm
        # behind has at hand; with dropout in between, each product sums what it reads.
        in_product = self.dropout is not None and micro_step is not None
        dresidual.fill(0)
        layernorm_backward(
            dresidual, g.lnfw, g.lnfb, dbtc, a.residual3[L - 1], p.lnfw,
            a.lnf_mean, a.lnf_rstd, partials, None if in_product else g.fcprojb[L - 1],
        )  # fmt: skip
        for l in reversed(range(L)):  # noqa: E741
            residual = a.residual3[l - 1] if l else a.encoded
            ln1, ln2, fch_gelu = self._recomputed(l, residual)

            dout = self._drop(dbtc, dresidual, micro_step, place=2 * l + 2)
            gelu_linear_gradients(
                dfch, g.fcprojw[l], g.fcprojb[l] if in_product else None, g.fcb[l], dout, a.fch[l],
                fch_gelu, p.fcprojw[l], partials,
            )  # fmt: skip
            linear_gradients(dbtc, g.fcw[l], None, dfch, ln2, p.fcw[l], partials)
            layernorm_backward(
                dresidual, g.ln2w[l], g.ln2b[l], dbtc, a.residual2[l], p.ln2w[l],
                a.ln2_mean[l], a.ln2_rstd[l], partials, None if in_product else g.attprojb[l],
            )  # fmt: skip

            dout = self._drop(dbtc, dresidual, micro_step, place=2 * l + 1)
            linear_gradients(
                datty, g.attprojw[l], g.attprojb[l] if in_product else None, dout, a.atty[l], p.attprojw[l],
                partials,
            )  # fmt: skip
            if layer_done is not None and l + 1 < L:
                layer_done(l + 1)  # not before: see `backward`
            attention_backward(
                dqkv, g.qkvb[l], datty, a.qkv[l], a.atty[l], a.lse[l], NH, s.lse_dot, s.row_sums,
                precision=self.precision,
            )  # fmt: skip
            linear_gradients(dbtc, g.qkvw[l], None, dqkv, ln1, p.qkvw[l], partials)
            layernorm_backward(
                dresidual, g.ln1w[l], g.ln1b[l], dbtc, residual, p.ln1w[l],
                a.ln1_mean[l], a.ln1_rstd[l], partials,
                None if in_product or l == 0 else g.fcprojb[l - 1],
            )  # fmt: skip
        if layer_done is not None:
            layer_done(0)

    def _head(self, targets: Array, dloss: float | None) -> None:
        """Losses, and with `dloss` also the gradients of lnf (in scratch.dbtc) and wte."""
        p, V, C = self.params, self.config.V, self.config.C
        lnf, targets = self.acts.lnf.reshape(-1, C), targets.reshape(-1)
        losses, logits = self.acts.losses.reshape(-1), self.scratch.logits
        for start in range(0, len(lnf), len(logits)):
            rows = slice(start, min(start + len(logits), len(lnf)))
            chunk = logits[: rows.stop - rows.start]
            lm_head(
                losses[rows], chunk, lnf[rows], p.wte, targets[rows], V, dloss,
                self.scratch.head_statistics, precision=self.precision,
            )  # fmt: skip
            if dloss is not None:
                assert self.grads is not None
                dlnf = self.scratch.dbtc.reshape(-1, C)
                linear_backward(
                    dlnf[rows], self.grads.wte, None, chunk, lnf[rows], p.wte,
                    self.scratch.partials, precision=self.precision)  # fmt: skip

    def _drop(self, out: Array, inp: Array, micro_step: int | None, place: int) -> Array:
        """inp itself without dropout, else `out` filled with the dropped `inp`."""
        if self.dropout is None or micro_step is None:
            return inp
        self.dropout.apply(out, inp, micro_step, place)
        return out

    def _in_parts(self) -> "list[tuple[slice, GPT]]":
        """(batch rows, the model over these rows) for each part that the layers run over."""
        # Not kept where it is the model itself: one that refers to itself would outlive its last
        # use, and the memory of its device with it.
        return self._parts or [(slice(None), self)]

    def _cut_batch(self, count: int) -> "list[tuple[slice, GPT]]":
        """The same model over views of the batch rows of `count` parts; none for a single part."""
        if count == 1:
            return []
        cuts = [len(self.acts.encoded) * i // count for i in range(count + 1)]
        return [(slice(i, j), self._part(i, j)) for i, j in pairwise(cuts)]

    def _part(self, start: int, stop: int) -> "GPT":
        config, training, logits_rows = (
            self.config,
            self.grads is not None,
            len(self.scratch.logits),
        )
        _, T, C = self.acts.encoded.shape
        part, rows = copy(self), slice(start, stop)
        acts = activation_specs(
            config, stop - start, T, recompute=self.recompute, training=training
        )
        scratch = scratch_specs(config, stop - start, T, training=training, logits_rows=logits_rows)
        part.acts = cut_batch_rows(self.acts, acts, rows)
        part.scratch = cut_batch_rows(self.scratch, scratch, rows)
        if self.dropout is not None:
            part.dropout = replace(self.dropout, first=self.dropout.first + start * T * C)
        return part

    def _shared_gradients(self) -> tuple[Array, Array, Array]:
        """dfch (B, T, 4C), and dqkv (B, T, 3C) and datty (B, T, C) in the same memory."""
        B, T, C = self.acts.encoded.shape
        flat = self.scratch.dbt4c
        split = 3 * B * T * C
        return (
            flat.reshape(B, T, 4 * C),
            flat[:split].reshape(B, T, 3 * C),
            flat[split:].reshape(B, T, C),
        )

    def _recomputed(self, l: int, residual: Array) -> tuple[Array, Array, Array]:  # noqa: E741
        """ln1, ln2 and fch_gelu of layer l: as kept, or computed again (see `recompute`)."""
        p, a = self.params, self.acts
        ln1, ln2, fch_gelu = _layer(a.ln1, l), _layer(a.ln2, l), _layer(a.fch_gelu, l)
        if self.recompute >= 1:
            gelu_forward(fch_gelu, a.fch[l])
        if self.recompute >= 2:
            layernorm_forward(ln1, a.ln1_mean[l], a.ln1_rstd[l], residual, p.ln1w[l], p.ln1b[l])
            layernorm_forward(
                ln2, a.ln2_mean[l], a.ln2_rstd[l], a.residual2[l], p.ln2w[l], p.ln2b[l]
            )
        return ln1, ln2, fch_gelu


def _layer(stack: Array, l: int) -> Array:  # noqa: E741
    """Layer l of a tensor kept for every layer, or the one buffer that all layers share."""
    return stack[l if l < len(stack) else 0]
