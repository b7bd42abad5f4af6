"""Text from a model, one token after the other, over a cache of keys and values."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cupygpt.config import GPTConfig
from cupygpt.device.device import Device
from cupygpt.device.precision import Precision
from cupygpt.errors import RunError
from cupygpt.model.tensors import PREFILL_ROWS, Tensors, arena_bytes, cut_aligned, decoder_specs
from cupygpt.ops.attention import attention_decode
from cupygpt.ops.encoder import encoder_forward
from cupygpt.ops.gelu import gelu_forward
from cupygpt.ops.layernorm import layernorm_forward, residual_layernorm_forward
from cupygpt.ops.linear import linear_forward
from cupygpt.ops.sampling import NOT_FINITE, sample_token

ENDED = -1
"""Stands for the next token of a text that has ended."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature 0 takes the likeliest, 0 for top_k means all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Generator:
    """Decodes with the given parameters; its buffers are small compared with the model's.

    `window` is the number of positions that are used, at most maxT and by default all: a model
    that was trained on shorter rows knows nothing of the positions behind them. After a token is
    fed, its logits give the distribution of the next one.
    """

    def __init__(
        self,
        device: Device,
        config: GPTConfig,
        params: Tensors,
        precision: Precision,
        *,
        window: int | None = None,
        rows: int = 1,
    ) -> None:
        self.device, self.config, self.params = device, config, params
        self.precision = precision
        self.window = min(window or config.maxT, config.maxT)
        self._position = 0
        specs, dtypes = decoder_specs(config), precision.dtypes
        size = arena_bytes(specs, lambda name: dtypes[name].itemsize)
        self._buffers = cut_aligned(device.zeros(size, np.uint8), specs, dtypes)
        self._others = [
            Generator(device, config, params, precision, window=window) for _ in range(1, rows)
        ]

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        *,
        stop: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the next token of each prompt, int32, up to `count` times; -1 where a text ended.

        At most `rows` prompts, each with a seed of its own. Ends early when all texts have ended.
        """
        generators = [self, *self._others]
        assert len(prompts) == len(seeds) <= len(generators), (len(prompts), len(seeds))
        texts = [
            generator.generate(prompt, count, sampling, seed, stop=stop)
            for generator, prompt, seed in zip(generators, prompts, seeds, strict=False)
        ]
        for _ in range(count):
            tokens = np.array([next(text, ENDED) for text in texts], np.int32)
            if (tokens == ENDED).all():
                return
            yield tokens

    def generate(
        self,
        prompt: Sequence[int],
        count: int,
        sampling: Sampling,
        seed: Sequence[int],
        *,
        stop: int | None = None,
    ) -> Iterator[int]:
        """Yield `count` tokens that continue `prompt` (at least one id); `seed` repeats them.

        The text ends earlier where the token `stop` is drawn, which is not yielded. Of a prompt
        longer than the window its last tokens are read. When the window is full, it starts again
        with its last half. Raises RunError for logits that are not finite.
        """
        draws = np.random.RandomState(list(seed))
        history = deque(prompt, maxlen=self.window)
        self._position = 0
        self._feed(history)
        for _ in range(count):
            token = self._draw(draws.random_sample(), sampling)
            if token == stop:
                return
            yield token
            history.append(token)
            if self._position < self.window:
                self._feed([token])
            else:
                self._position = 0
                self._feed(list(history)[-max(1, self.window // 2) :])

    def dry_run(self) -> None:
        """Make the calls of one token once, to see what they launch."""
        self._position = 0
        self._forward(np.zeros(1, np.int32))
        self._sample(Sampling())

    def _draw(self, uniform: float, sampling: Sampling) -> int:
        """The next token, decided by a random number in [0, 1)."""
        buffers = self._buffers
        # 1 - 2**-24 is the largest float32 below 1.
        below_1 = np.minimum(np.array([uniform], np.float32), np.float32(1 - 2**-24))
        self.device.upload(buffers.uniform, below_1)
        self._sample(sampling)
        token = int(self.device.download(buffers.token)[0])
        if token == NOT_FINITE:
            raise RunError(
                "no text can be written: the model's logits are not finite numbers. Its weights "
                "are damaged, or its training has diverged: take an earlier checkpoint."
            )
        return token

    def _sample(self, sampling: Sampling) -> None:
        buffers = self._buffers
        sample_token(
            buffers.token,
            buffers.logits[0],
            self.config.V,
            buffers.uniform,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
        )

    def _feed(self, tokens: Iterable[int]) -> None:
        tokens = list(tokens)
        for start in range(0, len(tokens), PREFILL_ROWS):
            with np.errstate(over="ignore"):  # exp in GELU may overflow to infinity, as meant
                self._forward(np.array(tokens[start : start + PREFILL_ROWS], np.int32))

    def _forward(self, tokens: np.ndarray) -> None:
        """Run n new positions through all layers; logits of the last one into the buffer."""
        p, n, NH = self.params, len(tokens), self.config.NH
        whole = self._buffers
        self.device.upload(whole.tokens[:, :n], tokens[None])
        # Two residual buffers take turns: residual_layernorm_forward may not write what it reads.
        residual, other = whole.residual[0, :, :n], whole.residual[1, :, :n]
        norm, branch, qkv = whole.norm[:, :n], whole.branch[:, :n], whole.qkv[:, :n]
        hidden, activated = whole.hidden[0, :, :n], whole.hidden[1, :, :n]
        mean, rstd = whole.statistics[0, :, :n], whole.statistics[1, :, :n]

        encoder_forward(residual, whole.tokens[:, :n], p.wte, p.wpe[self._position :])
        layernorm_forward(norm, mean, rstd, residual, p.ln1w[0], p.ln1b[0])
        for l in range(self.config.L):  # noqa: E741
            linear_forward(qkv, norm, p.qkvw[l], p.qkvb[l], precision=self.precision)
            attention_decode(norm[0], whole.cache[l], qkv[0], self._position, NH)
            linear_forward(branch, norm, p.attprojw[l], p.attprojb[l], precision=self.precision)
            residual_layernorm_forward(
                other, norm, mean, rstd, residual, branch, p.ln2w[l], p.ln2b[l]
            )
            linear_forward(hidden, norm, p.fcw[l], p.fcb[l], precision=self.precision)
            gelu_forward(activated, hidden)
            linear_forward(branch, activated, p.fcprojw[l], p.fcprojb[l], precision=self.precision)
            last = l + 1 == self.config.L
            weight, bias = (p.lnfw, p.lnfb) if last else (p.ln1w[l + 1], p.ln1b[l + 1])
            residual_layernorm_forward(residual, norm, mean, rstd, other, branch, weight, bias)
        linear_forward(whole.logits, norm[:, n - 1], p.wte, None, precision=self.precision)
        self._position += n
