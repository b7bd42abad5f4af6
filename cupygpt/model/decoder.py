"""The passes of a model that writes text: prompts into the cache, and one step of all texts.

Each text has a row of the cache of keys and values. A step feeds one token of every text at its own
position, draws the next one and leaves it where the next step reads it. All that changes from step
to step lies in the device's memory, so a GPU replays a step as one captured graph.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from cupygpt.arrays import Array
from cupygpt.config import GPTConfig
from cupygpt.device.device import Device
from cupygpt.device.precision import Precision
from cupygpt.model.tensors import (
    STEP_SLOTS,
    Tensors,
    arena_bytes,
    cut_aligned,
    decoder_specs,
)
from cupygpt.ops.attention import attention_decode
from cupygpt.ops.encoder import encoder_decode
from cupygpt.ops.gelu import gelu_forward
from cupygpt.ops.layernorm import layernorm_forward, residual_layernorm_forward
from cupygpt.ops.linear import fits_few_rows, linear_few_rows, linear_forward
from cupygpt.ops.sampling import sample_token


class Decoder:
    """Passes with the given parameters, over buffers for up to `rows` texts."""

    def __init__(
        self, device: Device, config: GPTConfig, params: Tensors, precision: Precision, rows: int
    ) -> None:
        self.device, self.config, self.params = device, config, params
        self.precision = precision
        specs, dtypes = decoder_specs(config, rows), precision.dtypes
        size = arena_bytes(specs, lambda name: dtypes[name].itemsize)
        self._buffers = cut_aligned(device.zeros(size, np.uint8), specs, dtypes)
        self._views_of: dict[int, tuple[Array, Array, Array]] = {}

    def prefill(self, prompts: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Put the keys and values of (row, tokens) into the cache, from position 0 on."""
        tokens, rows, positions = (np.zeros(0, np.int32) for _ in range(3))
        for row, ids in prompts:
            tokens = np.append(tokens, np.array(ids, np.int32))
            rows = np.append(rows, np.full(len(ids), row, np.int32))
            positions = np.append(positions, np.arange(len(ids), dtype=np.int32))
        most = int(self._buffers.prompt.shape[1])
        for first in range(0, len(tokens), most):
            part = slice(first, first + most)
            # Where a row begins in this part is its first position that is not in the cache yet.
            begins = np.append(True, np.diff(rows[part]) != 0)
            starts = positions[part][begins][begins.cumsum() - 1]
            packed = np.stack([tokens[part], rows[part], positions[part], starts])
            n = packed.shape[1]
            device_packed = self._buffers.prompt.reshape(-1)[: 4 * n].reshape(4, n)
            self.device.upload(device_packed, packed)
            with np.errstate(over="ignore"):  # exp in GELU may overflow to infinity, as meant
                self._layers(n, *device_packed)

    def place(self, tokens: Sequence[int], positions: np.ndarray) -> None:
        """Say which token the next step feeds at which position, for each row."""
        state, _, _ = self._views(len(tokens))
        self.device.upload(state[0], np.array(tokens, np.int32))
        self.device.upload(state[1], positions)

    def count_from_zero(self, n: int) -> None:
        """The next step of n texts is number 0: it draws by the first slot of random numbers."""
        state, _, _ = self._views(n)
        self.device.upload(state[2], np.zeros(n, np.int32))
        self.device.upload(state[3], np.arange(n, dtype=np.int32))

    def load_uniforms(self, uniforms: np.ndarray) -> None:
        """The random numbers (STEP_SLOTS, n) in [0, 1) of the next STEP_SLOTS steps."""
        # 1 - 2**-24 is the largest float32 below 1.
        below_1 = np.minimum(uniforms.astype(np.float32), np.float32(1 - 2**-24))
        self.device.upload(self._views(uniforms.shape[1])[1], below_1)

    def drawn(self, n: int, step: int) -> Array:
        """Where step number `step` of n texts leaves its tokens (n,)."""
        return self._views(n)[2][step % STEP_SLOTS]

    def step(
        self, n: int, last_position: int, temperature: float, top_k: int, top_p: float
    ) -> None:
        """Feed the tokens of n texts and draw the next ones as in ops/sampling.py."""
        (tokens, positions, counts, rows), uniforms, drawn = self._views(n)
        logits = self._buffers.logits[:n]
        # A step has as many rows as the largest product, the one of 4C columns, may have.
        is_few = fits_few_rows(n, 4 * self.config.C, self.precision.storage.itemsize)
        with np.errstate(over="ignore"):
            if self.device.is_gpu and is_few:
                self._step_of_few_rows(n, tokens, rows, positions, logits)
            else:
                norm = self._layers(n, tokens, rows, positions, positions)
                linear_forward(logits, norm, self.params.wte, None, precision=self.precision)
        sample_token(
            drawn, tokens, positions, counts, logits, uniforms, self.config.V, last_position,
            temperature, top_k, top_p,
        )  # fmt: skip

    def _views(self, n: int) -> tuple[Array, Array, Array]:
        """State, slots of random numbers, and slots of drawn tokens, of n texts.

        The state (4, n) has their tokens, positions, step numbers and rows.
        """
        if n not in self._views_of:
            b, slots = self._buffers, STEP_SLOTS
            self._views_of[n] = (
                b.state.reshape(-1)[: 4 * n].reshape(4, n),
                b.uniforms.reshape(-1)[: slots * n].reshape(slots, n),
                b.drawn.reshape(-1)[: slots * n].reshape(slots, n),
            )
        return self._views_of[n]

    def _step_of_few_rows(
        self, n: int, tokens: Array, rows: Array, positions: Array, logits: Array
    ) -> None:
        """All layers and the head, five kernels a layer."""
        p, b, NH = self.params, self._buffers, self.config.NH
        residual, attended, qkv, hidden = b.residual[0, :n], b.norm[:n], b.qkv[:n], b.hidden[0, :n]
        encoder_decode(residual, tokens, positions, p.wte, p.wpe)
        for l in range(self.config.L):  # noqa: E741
            norm1, norm2 = (p.ln1w[l], p.ln1b[l]), (p.ln2w[l], p.ln2b[l])
            linear_few_rows(qkv, residual, p.qkvw[l], p.qkvb[l], norm=norm1)
            attention_decode(attended, b.cache[l], qkv, rows, positions, positions, NH, b.partials)
            linear_few_rows(residual, attended, p.attprojw[l], p.attprojb[l], accumulate=True)
            linear_few_rows(hidden, residual, p.fcw[l], p.fcb[l], norm=norm2, gelu=True)
            linear_few_rows(residual, hidden, p.fcprojw[l], p.fcprojb[l], accumulate=True)
        head = p.wte[: self.config.V]
        linear_few_rows(logits, residual, head, None, norm=(p.lnfw, p.lnfb))

    def _layers(self, n: int, tokens: Array, rows: Array, positions: Array, starts: Array) -> Array:
        """Run n new positions through all layers; returns the last LayerNorm (n, C)."""
        p, b, NH, precision = self.params, self._buffers, self.config.NH, self.precision
        # Two residual buffers take turns: residual_layernorm_forward may not write what it reads.
        residual, other = b.residual[0, :n], b.residual[1, :n]
        norm, branch, qkv = b.norm[:n], b.branch[:n], b.qkv[:n]
        hidden, activated = b.hidden[0, :n], b.hidden[1, :n]
        mean, rstd = b.statistics[0, :n], b.statistics[1, :n]

        encoder_decode(residual, tokens, positions, p.wte, p.wpe)
        layernorm_forward(norm, mean, rstd, residual, p.ln1w[0], p.ln1b[0])
        for l in range(self.config.L):  # noqa: E741
            linear_forward(qkv, norm, p.qkvw[l], p.qkvb[l], precision=precision)
            attention_decode(norm, b.cache[l], qkv, rows, positions, starts, NH, b.partials)
            linear_forward(branch, norm, p.attprojw[l], p.attprojb[l], precision=precision)
            residual_layernorm_forward(
                other, norm, mean, rstd, residual, branch, p.ln2w[l], p.ln2b[l]
            )
            linear_forward(hidden, norm, p.fcw[l], p.fcb[l], precision=precision)
            gelu_forward(activated, hidden)
            linear_forward(branch, activated, p.fcprojw[l], p.fcprojb[l], precision=precision)
            last = l + 1 == self.config.L
            weight, bias = (p.lnfw, p.lnfb) if last else (p.ln1w[l + 1], p.ln1b[l + 1])
            residual_layernorm_forward(residual, norm, mean, rstd, other, branch, weight, bias)
        return norm
