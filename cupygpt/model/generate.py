"""Texts from a model, one token after the other, several texts at once.

The host queues steps ahead of the tokens that it has read, so that a GPU never waits for it:

    GPU      step 0   step 1   step 2   step 3   step 4   step 5 ...
    host          queues 4 ... reads 0, queues 5, reads 1, queues 6 ...

A text that ends leaves a few steps whose tokens nobody reads. They change nothing: each text draws
by random numbers of its own, in its own row of the cache.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cupygpt.config import GPTConfig
from cupygpt.device.device import Device, PendingRead, Replay
from cupygpt.device.precision import Precision
from cupygpt.errors import RunError
from cupygpt.model.decoder import Decoder
from cupygpt.model.tensors import STEP_SLOTS, Tensors
from cupygpt.ops.sampling import NOT_FINITE

ENDED = -1
"""Stands for the next token of a text that has ended."""

STEPS_AHEAD = 4
"""Steps that a GPU has in its queue while the host reads the tokens of the first."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature 0 takes the likeliest, 0 for top_k means all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class _Batch:
    """Texts that are written together, as far as the host has read them."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        stop: int | None,
        window: int,
    ) -> None:
        self.stop = stop
        self.draws = [np.random.RandomState(list(seed)) for seed in seeds]
        self.positions = np.zeros(len(prompts), np.int32)
        """Of the next token to be fed; those of texts that have ended do not matter."""
        self.room = 0
        """Steps until the window of a text is full."""
        self.ended = np.zeros(len(prompts), bool)
        self.over = False
        """Whether all have ended."""
        self.queued: deque[PendingRead] = deque()
        """The tokens of steps that have not been read."""
        self._prompts = [list(prompt)[-window:] for prompt in prompts]
        self._steps: deque[np.ndarray] = deque(maxlen=window)

    def append(self, drawn: np.ndarray) -> np.ndarray:
        """What a step has drawn, one more token of each text; returns it, ENDED where one ended."""
        tokens = drawn
        values = drawn.tolist()
        if self.stop in values or NOT_FINITE in values or self.ended.any():
            if ((drawn == NOT_FINITE) & ~self.ended).any():
                raise RunError(
                    "no text can be written: the model's logits are not finite numbers. Its "
                    "weights are damaged, or its training has diverged: take an earlier checkpoint."
                )
            self.ended |= drawn == self.stop
            self.over = bool(self.ended.all())
            tokens = np.where(self.ended, np.int32(ENDED), drawn)
        self._steps.append(tokens)
        return tokens

    def last(self, row: int, count: int) -> list[int]:
        """The last tokens of a text, up to `count` of them, which is at most the window."""
        steps = itertools.islice(reversed(self._steps), count)
        written = [int(tokens[row]) for tokens in steps]
        before = self._prompts[row][len(written) - count :] if len(written) < count else []
        return [*before, *reversed(written)]


class Generator:
    """Decodes with the given parameters; its buffers are small compared with the model's.

    `window` is the number of positions that are used, at most maxT and by default all: a model
    that was trained on shorter rows knows nothing of the positions behind them. `rows` is the
    number of texts that it writes at once. A generator writes one batch at a time: a call of
    `generate` or `generate_batch` ends the one before.
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
        self.window, self.rows = min(window or config.maxT, config.maxT), rows
        self._decoder = Decoder(device, config, params, precision, rows)
        self._batch: _Batch | None = None
        self._warm: set[int] = set()
        """Numbers of texts whose step has run: its kernels are loaded."""
        self._graph: tuple[tuple[int, Sampling, int], Replay] | None = None

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
        for (token,) in self.generate_batch([prompt], count, sampling, [seed], stop=stop):
            yield int(token)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        *,
        stop: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the next token of each text, int32, up to `count` times; ENDED if it has ended.

        At most `rows` prompts, of any lengths, each with a seed of its own. Ends early when all
        texts have ended. Each text is what `generate` would write, up to rounding: the products of
        several rows may add up in another order than those of one, so that where two tokens are
        almost equally likely, a batch may take the other one. The same batch repeats bit for bit.
        """
        n = len(prompts)
        assert 0 < n == len(seeds) <= self.rows, (n, len(seeds), self.rows)
        self._batch = batch = _Batch(prompts, seeds, stop, self.window)
        self._decoder.count_from_zero(n)
        self._feed(batch, range(n), self.window)
        ahead = STEPS_AHEAD if self.device.is_gpu else 0
        for step in range(count):
            if batch is not self._batch:  # the cache holds the other text
                raise RunError("this text was left unfinished when another one was begun.")
            if batch.room == 0:
                yield from self._read(batch, 0)
                full = np.flatnonzero((batch.positions == self.window) & ~batch.ended)
                # A text whose window is full starts again with its last half; the others stay.
                self._feed(batch, full.tolist(), max(1, self.window // 2))
            if batch.over:
                return
            if step % STEP_SLOTS == 0:
                uniforms = [draws.random_sample(STEP_SLOTS) for draws in batch.draws]
                self._decoder.load_uniforms(np.stack(uniforms, axis=1))
            self._step(n, sampling)
            batch.queued.append(self.device.read_later(self._decoder.drawn(n, step)))
            batch.positions += 1
            batch.room -= 1
            yield from self._read(batch, ahead)
        yield from self._read(batch, 0)

    def dry_run(self) -> None:
        """Make the calls of a prompt and of a step once, to see what they launch."""
        self._decoder.prefill([(0, [0, 0])])
        self._queue(self.rows, Sampling())

    def _feed(self, batch: _Batch, rows: Iterable[int], count: int) -> None:
        """Begin these rows with their last `count` tokens; the next step feeds the last of them."""
        tokens_of = {row: batch.last(row, count) for row in rows}
        self._decoder.prefill((row, tokens[:-1]) for row, tokens in tokens_of.items())
        for row, tokens in tokens_of.items():
            batch.positions[row] = len(tokens) - 1
        # Nobody reads what a text draws that has ended, but its token and position must exist.
        batch.positions[batch.ended] = 0
        batch.room = self.window - int(batch.positions.max())
        last = [max(0, batch.last(row, 1)[0]) for row in range(len(batch.ended))]
        self._decoder.place(last, batch.positions)

    def _queue(self, n: int, sampling: Sampling) -> None:
        """Queue the calls of a step."""
        temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
        self._decoder.step(n, self.window - 1, temperature, top_k, top_p)

    def _step(self, n: int, sampling: Sampling) -> None:
        """Queue a step: from the second one on a captured graph.

        While a graph is captured, nothing may allocate or load code, and a first call does.
        """
        key = (n, sampling, self.window)
        if n not in self._warm:
            self._queue(n, sampling)
            self._warm.add(n)
            return
        if self._graph is None or self._graph[0] != key:
            self._graph = key, self.device.capture(lambda: self._queue(n, sampling))
        self._graph[1].launch()

    def _read(self, batch: _Batch, ahead: int) -> Iterator[np.ndarray]:
        """The tokens of all queued steps but the last `ahead`, until all texts have ended."""
        while len(batch.queued) > ahead and not batch.over:
            tokens = batch.append(batch.queued.popleft().value())
            if not batch.over:
                yield tokens


def one_after_the_other(steps: Iterator[np.ndarray], n: int) -> Iterator[Iterator[int]]:
    """The n texts of `generate_batch`, to be read in this order: the first one as it is written.

    What the others have meanwhile is kept until their turn.
    """
    kept: list[deque[int]] = [deque() for _ in range(n)]
    ended = [False] * n

    def text(number: int) -> Iterator[int]:
        while True:
            while kept[number]:
                yield kept[number].popleft()
            tokens = None if ended[number] else next(steps, None)
            if tokens is None:
                return
            for row, token in enumerate(tokens.tolist()):
                if token == ENDED:
                    ended[row] = True
                else:
                    kept[row].append(token)

    return map(text, range(n))
