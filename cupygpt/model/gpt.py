"""GPT-2: forward and backward as a plain list of op calls over named tensors.

Written once for all devices: the ops look at where their arrays live. Pre-norm blocks, learned
positions, the LM head tied to the token embedding (Radford et al. 2019; llm.c train_gpt2.c):

    tokens -> encoder -> residual -> [ln1 -> qkv -> attention -> attproj -> + residual
                                      -> ln2 -> fc -> gelu -> fcproj -> + residual] x L
           -> lnf -> logits = lnf wteᵀ -> losses

An addition to the residual and the LayerNorm that follows it are one op. The LM head works on
chunks of rows, so that the (B, T, Vp) logits never exist as a whole. On the CPU the layers run
over slices of the batch in parallel, one on each core (see device/batch_split.py).
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from cupygpt.arrays import Array
from cupygpt.config import GPTConfig
from cupygpt.device.batch_split import num_slices, run_slices
from cupygpt.device.precision import Precision
from cupygpt.model.tensors import (
    Layer,
    Norm,
    Tensors,
    activation_specs,
    cut_batch_rows,
    cut_layers,
    scratch_specs,
)
from cupygpt.ops.attention import attention_backward, attention_forward
from cupygpt.ops.dropout import dropout
from cupygpt.ops.encoder import encoder_backward, encoder_forward
from cupygpt.ops.gelu import gelu_forward
from cupygpt.ops.layernorm import (
    layernorm_backward,
    layernorm_forward,
    residual_layernorm_forward,
)
from cupygpt.ops.linear import (
    gelu_linear_backward,
    linear_backward,
    linear_forward,
    linear_gelu_forward,
)
from cupygpt.ops.lm_head import lm_head

LayerDone = Callable[[int], None]
"""Called with the index of a layer when its gradients are queued."""


@dataclass
class Dropout:
    """Probability of dropping, and the generator's state in device memory (see ops/dropout.py).

    `rng_offset` is the index, in the batch of all ranks, of the first element that this batch
    slice holds.
    """

    p: float
    state: Array
    rng_offset: int = 0

    def apply(self, out: Array, inp: Array, micro_step: int, site: int) -> None:
        """out = dropout(inp); each (micro_step, site) of a step has a mask of its own."""
        dropout(out, inp, self.state, micro_step << 16 | site, self.p, self.rng_offset)


class GPT:
    """The buffers of one model at a fixed batch shape, and the passes over them.

    `params`, `grads`, `acts` and `scratch` follow the tables in tensors.py; `grads` is None if
    the model only evaluates. `recompute` is the option of that name in `activation_specs`;
    `precision` is that of the buffers.

    Dropout has 2 L + 1 sites: 0 after the embedding, 2 l + 1 and 2 l + 2 at the ends of layer l's
    attention and MLP.
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
        self.precision = precision
        self.recompute = recompute
        self.dropout = dropout
        self._layers, self._lnf = cut_layers(config, params, grads, acts)
        self._slices = self._cut_batch(num_slices(acts.encoded))

    # ---- forward ------------------------------------------------------------------------------

    def forward(self, tokens: Array, *, micro_step: int | None = None) -> None:
        """Fill acts up to lnf from tokens (B, T) int32; dropout only if `micro_step` is given."""
        run_slices(
            [
                partial(model._slice_forward, tokens[rows], micro_step)
                for rows, model in self._batch_slices()
            ]
        )

    def _slice_forward(self, tokens: Array, micro_step: int | None) -> None:
        """`forward` for one slice of the batch."""
        p, encoded, ln1 = self.params, self.acts.encoded, self._layers[0].ln1
        encoder_forward(encoded, tokens, p.wte, p.wpe)
        self._drop(encoded, encoded, micro_step, site=0)
        layernorm_forward(ln1.out, ln1.mean, ln1.rstd, encoded, ln1.weight, ln1.bias)
        for layer in self._layers:
            self._attention_forward(layer, micro_step)
            self._mlp_forward(layer, micro_step)

    def _attention_forward(self, layer: Layer, micro_step: int | None) -> None:
        """residual2 = residual + attention branch, and ln2 of it."""
        p, a, branch, ln2 = layer.params, layer.acts, self.scratch.btc, layer.ln2
        linear_forward(a.qkv, layer.ln1.out, p.qkvw, p.qkvb, precision=self.precision)
        attention_forward(a.atty, a.lse, a.qkv, self.config.NH, precision=self.precision)
        linear_forward(branch, a.atty, p.attprojw, p.attprojb, precision=self.precision)
        self._drop(branch, branch, micro_step, site=2 * layer.index + 1)
        residual_layernorm_forward(
            residual=a.residual2,
            out=ln2.out,
            mean=ln2.mean,
            rstd=ln2.rstd,
            inp1=layer.inp,
            inp2=branch,
            weight=ln2.weight,
            bias=ln2.bias,
        )

    def _mlp_forward(self, layer: Layer, micro_step: int | None) -> None:
        """residual3 = residual2 + MLP branch, and the next layer's ln1 (or lnf) of it."""
        p, a, branch, norm = layer.params, layer.acts, self.scratch.btc, self._norm_after(layer)
        linear_gelu_forward(
            a.fch_gelu, a.fch, layer.ln2.out, p.fcw, p.fcb, precision=self.precision
        )
        linear_forward(branch, a.fch_gelu, p.fcprojw, p.fcprojb, precision=self.precision)
        self._drop(branch, branch, micro_step, site=2 * layer.index + 2)
        residual_layernorm_forward(
            residual=a.residual3,
            out=norm.out,
            mean=norm.mean,
            rstd=norm.rstd,
            inp1=a.residual2,
            inp2=branch,
            weight=norm.weight,
            bias=norm.bias,
        )

    def loss(self, targets: Array) -> None:
        """acts.losses += each token's loss, after forward; targets (B, T) int32, -1 ignored."""
        self._lm_head(targets, dloss=None)

    # ---- backward -----------------------------------------------------------------------------

    def backward(
        self,
        tokens: Array,
        targets: Array,
        order: Array,
        dloss: float,
        *,
        micro_step: int | None = None,
        layer_done: LayerDone | None = None,
    ) -> None:
        """acts.losses += losses and grads += gradients of dloss * sum(losses), after forward.

        `order` is `token_order(tokens)` on the device. `layer_done` is called with each layer, the
        last first, when its gradients are queued. It is called for layer l just before
        attention_backward of layer l - 1: there the all-reduce kernel of NCCL finds free
        multiprocessors, next to a matmul it would not.
        """
        assert self.grads is not None
        self._lm_head(targets, dloss)
        slices = self._batch_slices()
        # Batch slices run in parallel: no layer is done before all slices are.
        during = layer_done if len(slices) == 1 else None
        run_slices([partial(model._slice_backward, micro_step, during) for _, model in slices])
        if layer_done is not None and during is None:
            for index in reversed(range(self.config.L)):
                layer_done(index)
        s = self.scratch
        dencoded = self._drop(s.dbtc, s.dresidual, micro_step, site=0)
        encoder_backward(self.grads.wte, self.grads.wpe, dencoded, tokens, order, s.row_sums)

    def _slice_backward(self, micro_step: int | None, layer_done: LayerDone | None) -> None:
        """The layers' share of `backward` for one batch slice.

        scratch.dresidual holds the gradient of the residual: at first that of the last layer's
        output, at the end that of `encoded`.
        """
        dbias = self._dbias_for_norm(self._layers[-1], "fcprojb", micro_step)
        self.scratch.dresidual.fill(0)
        self._norm_backward(self._lnf, self._layers[-1].acts.residual3, dbias)
        for layer in reversed(self._layers):
            ln1, ln2, fch_gelu = self._recomputed(layer)
            self._mlp_backward(layer, ln2, fch_gelu, micro_step)
            self._attention_backward(layer, ln1, micro_step, layer_done)
        if layer_done is not None:
            layer_done(0)

    def _mlp_backward(
        self, layer: Layer, ln2: Array, fch_gelu: Array, micro_step: int | None
    ) -> None:
        """Gradients of residual3 = residual2 + MLP(ln2(residual2))."""
        p, g, s = layer.params, layer.grads, self.scratch
        assert g is not None
        dfch, _, _ = self._views_of_dbt4c()
        dout = self._drop(s.dbtc, s.dresidual, micro_step, site=2 * layer.index + 2)
        gelu_linear_backward(
            dhidden=dfch,
            dweight=g.fcprojw,
            dbias=g.fcprojb if self._drops(micro_step) else None,
            dhidden_bias=g.fcb,
            dout=dout,
            hidden=layer.acts.fch,
            inp=fch_gelu,
            weight=p.fcprojw,
            partials=s.partials,
            precision=self.precision,
        )
        linear_backward(s.dbtc, g.fcw, None, dfch, ln2, p.fcw, s.partials, precision=self.precision)
        dbias = self._dbias_for_norm(layer, "attprojb", micro_step)
        self._norm_backward(layer.ln2, layer.acts.residual2, dbias)

    def _attention_backward(
        self, layer: Layer, ln1: Array, micro_step: int | None, layer_done: LayerDone | None
    ) -> None:
        """Gradients of residual2 = residual + attention(ln1(residual))."""
        p, g, a, s = layer.params, layer.grads, layer.acts, self.scratch
        assert g is not None
        _, dqkv, datty = self._views_of_dbt4c()
        dout = self._drop(s.dbtc, s.dresidual, micro_step, site=2 * layer.index + 1)
        dbias = g.attprojb if self._drops(micro_step) else None
        linear_backward(
            datty, g.attprojw, dbias, dout, a.atty, p.attprojw, s.partials,
            precision=self.precision,
        )  # fmt: skip
        if layer_done is not None and layer.index + 1 < self.config.L:
            layer_done(layer.index + 1)  # not before: see `backward`
        attention_backward(
            dqkv=dqkv,
            dbias=g.qkvb,
            dout=datty,
            qkv=a.qkv,
            out=a.atty,
            lse=a.lse,
            NH=self.config.NH,
            lse_delta=s.lse_delta,
            sums=s.row_sums,
            precision=self.precision,
        )
        linear_backward(
            s.dbtc, g.qkvw, None, dqkv, ln1, p.qkvw, s.partials, precision=self.precision
        )
        dbias = None
        if layer.index:
            below = self._layers[layer.index - 1]
            dbias = self._dbias_for_norm(below, "fcprojb", micro_step)
        self._norm_backward(layer.ln1, layer.inp, dbias)

    def _norm_backward(self, norm: Norm, inp: Array, dsum: Array | None) -> None:
        """dresidual += gradient of `inp`, from the gradient of norm.out in dbtc.

        dsum += the sums of the columns of the new dresidual.
        """
        layernorm_backward(
            dinp=self.scratch.dresidual,
            dweight=norm.dweight,
            dbias=norm.dbias,
            dout=self.scratch.dbtc,
            inp=inp,
            weight=norm.weight,
            mean=norm.mean,
            rstd=norm.rstd,
            partials=self.scratch.partials,
            dsum=dsum,
        )

    def _dbias_for_norm(self, layer: Layer, name: str, micro_step: int | None) -> Array | None:
        """The gradient of a branch's last bias if a LayerNorm's backward computes it, else None.

        It is the sum of the rows of dresidual, which the LayerNorm that reads residual + branch has
        at hand. With dropout in between, linear_backward sums the rows that it reads instead.
        """
        assert layer.grads is not None
        return None if self._drops(micro_step) else getattr(layer.grads, name)

    # ---- the rest -----------------------------------------------------------------------------

    def _lm_head(self, targets: Array, dloss: float | None) -> None:
        """Losses, and with `dloss` also the gradients of lnf (in scratch.dbtc) and wte."""
        p, s, C = self.params, self.scratch, self.config.C
        lnf, targets = self.acts.lnf.reshape(-1, C), targets.reshape(-1)
        losses = self.acts.losses.reshape(-1)
        for start in range(0, len(lnf), len(s.logits)):
            rows = slice(start, min(start + len(s.logits), len(lnf)))
            chunk = s.logits[: rows.stop - rows.start]
            lm_head(
                losses=losses[rows],
                dlogits=chunk,
                inp=lnf[rows],
                wte=p.wte,
                targets=targets[rows],
                V=self.config.V,
                dloss=dloss,
                statistics=s.lm_head_statistics,
                precision=self.precision,
            )
            if dloss is not None:
                assert self.grads is not None
                dlnf = s.dbtc.reshape(-1, C)
                linear_backward(
                    dlnf[rows], self.grads.wte, None, chunk, lnf[rows], p.wte, s.partials,
                    precision=self.precision,
                )  # fmt: skip

    def _drops(self, micro_step: int | None) -> bool:
        return self.dropout is not None and micro_step is not None

    def _drop(self, out: Array, inp: Array, micro_step: int | None, site: int) -> Array:
        """`inp` itself without dropout, else `out` filled with the dropped `inp`."""
        if self.dropout is None or micro_step is None:
            return inp
        self.dropout.apply(out, inp, micro_step, site)
        return out

    def _norm_after(self, layer: Layer) -> Norm:
        """The LayerNorm that reads a layer's output: the next layer's ln1, or lnf."""
        following = layer.index + 1
        return self._layers[following].ln1 if following < self.config.L else self._lnf

    def _views_of_dbt4c(self) -> tuple[Array, Array, Array]:
        """dfch (B, T, 4C); over the same memory, dqkv (B, T, 3C) followed by datty (B, T, C)."""
        B, T, C = self.acts.encoded.shape
        flat = self.scratch.dbt4c
        split = 3 * B * T * C
        return (
            flat.reshape(B, T, 4 * C),
            flat[:split].reshape(B, T, 3 * C),
            flat[split:].reshape(B, T, C),
        )

    def _recomputed(self, layer: Layer) -> tuple[Array, Array, Array]:
        """ln1, ln2 and fch_gelu of a layer: as kept, or computed again (see `recompute`)."""
        ln1, ln2, a = layer.ln1, layer.ln2, layer.acts
        if self.recompute >= 1:
            gelu_forward(a.fch_gelu, a.fch)
        if self.recompute >= 2:
            for norm, inp in ((ln1, layer.inp), (ln2, a.residual2)):
                layernorm_forward(norm.out, norm.mean, norm.rstd, inp, norm.weight, norm.bias)
        return ln1.out, ln2.out, a.fch_gelu

    # ---- slices of the batch ------------------------------------------------------------------

    def _batch_slices(self) -> "list[tuple[slice, GPT]]":
        """(batch rows, the model over these rows) for each slice that the layers run over."""
        # A model is not kept in its own list: one that refers to itself would outlive its last
        # use, and the memory of its device with it.
        return self._slices or [(slice(None), self)]

    def _cut_batch(self, count: int) -> "list[tuple[slice, GPT]]":
        """The same model over views of the batch rows of `count` slices; none for one slice."""
        if count == 1:
            return []
        cuts = [len(self.acts.encoded) * i // count for i in range(count + 1)]
        return [(slice(i, j), self._batch_slice(i, j)) for i, j in pairwise(cuts)]

    def _batch_slice(self, start: int, stop: int) -> "GPT":
        config, training = self.config, self.grads is not None
        logits_rows, (_, T, C) = len(self.scratch.logits), self.acts.encoded.shape
        model, rows = copy(self), slice(start, stop)
        acts = activation_specs(
            config, stop - start, T, recompute=self.recompute, training=training
        )
        scratch = scratch_specs(config, stop - start, T, training=training, logits_rows=logits_rows)
        model.acts = cut_batch_rows(self.acts, acts, rows)
        model.scratch = cut_batch_rows(self.scratch, scratch, rows)
        model._layers, model._lnf = cut_layers(config, self.params, self.grads, model.acts)
        if self.dropout is not None:
            offset = self.dropout.rng_offset + start * T * C
            model.dropout = replace(self.dropout, rng_offset=offset)
        return model
