"""Text from a model: whole characters, for one prompt or several at once."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from cupygpt.config import GPTConfig
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.device.callers import Pause
from cupygpt.device.device import Device
from cupygpt.device.precision import Precision
from cupygpt.model.generate import ENDED, Generator, Sampling
from cupygpt.model.memory_plan import MOST_ROWS, check_decoding_fits, rows_that_fit
from cupygpt.model.parameters import weights_bytes
from cupygpt.model.tensors import Tensors


@dataclass(frozen=True)
class Asked:
    """What is written: at most `tokens` after each prompt, ended by the id `stop`."""

    prompts: Sequence[Sequence[int]]
    tokens: int
    sampling: Sampling
    seed: int
    stop: int | None


class Characters:
    """The bytes of a text as whole characters; what is not UTF-8 becomes U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_open = True

    def begin(self, prompt: Sequence[int]) -> str:
        """The text of a prompt, without its end of text."""
        shown = [token for token in prompt if token != self._tokenizer.eot]
        return self._utf8.decode(self._tokenizer.decode_bytes(shown))

    def add(self, token: int) -> str:
        """The characters that are whole with this token; at the end of the text, what is left."""
        if token == ENDED:
            return self.end()
        return self._utf8.decode(self._tokenizer.decode_bytes([token]))

    def end(self) -> str:
        """What is left at the end of the text."""
        if not self._is_open:
            return ""
        self._is_open = False
        return self._utf8.decode(b"", final=True)


class Writers:
    """The generators of a model. Each call that writes has one of its own, the last one is kept."""

    def __init__(
        self,
        device: Device,
        config: GPTConfig,
        params: Tensors,
        precision: Precision,
        window: int | None,
    ) -> None:
        self._device, self._config, self._params = device, config, params
        self._precision, self._window = precision, window
        self._idle: Generator | None = None

    def take(self, rows: int) -> Generator:
        """A generator of at least so many rows.

        Raises DeviceError with the figures where the memory does not suffice.
        """
        idle, self._idle = self._idle, None
        if idle is not None and idle.rows >= rows:
            return idle
        del idle  # its memory is needed
        check_decoding_fits(self._config, self._precision, self._free_bytes(), rows)
        return Generator(
            self._device, self._config, self._params, self._precision,
            window=self._window, rows=rows,
        )  # fmt: skip

    def give_back(self, generator: Generator) -> None:
        """The texts are written."""
        if self._idle is None or self._idle.rows < generator.rows:
            self._idle = generator

    def rows_for(self, count: int) -> int:
        """How many of `count` texts are written at once: as many as the memory allows."""
        rows = min(count, MOST_ROWS)
        if self._idle is not None and self._idle.rows >= rows:
            return rows
        return rows_that_fit(self._config, self._precision, self._free_bytes(), rows)

    def _free_bytes(self) -> int | None:
        """What is free, and what the weights take already."""
        free = self._device.free_bytes()
        return None if free is None else free + weights_bytes(self._config, self._precision)


def pieces(
    asked: Asked,
    tokenizer: Tokenizer,
    writers: Writers,
    using: Callable[[], AbstractContextManager[Pause]],
) -> Iterator[list[str]]:
    """The next piece of each text, of whole characters; "" where there is none.

    The first piece of a text is its prompt. `using` is entered for each step, so that other threads
    can use the model between two pieces.
    """
    with using():
        rows = writers.rows_for(len(asked.prompts))
    for first in range(0, len(asked.prompts), rows):
        part = range(first, min(first + rows, len(asked.prompts)))
        texts = {number: Characters(tokenizer) for number in part}
        begun = {number: texts[number].begin(asked.prompts[number]) for number in part}
        yield _in_place(begun, len(asked.prompts))
        with using():
            generator = writers.take(len(part))
        steps = generator.generate_batch(
            [asked.prompts[number] for number in part],
            asked.tokens,
            asked.sampling,
            [(asked.seed, number) for number in part],
            stop=asked.stop,
        )
        while True:
            with using():
                tokens = next(steps, None)
            if tokens is None:
                break
            new = zip(part, np.asarray(tokens).tolist(), strict=True)
            yield _in_place({i: texts[i].add(token) for i, token in new}, len(asked.prompts))
        yield _in_place({i: texts[i].end() for i in part}, len(asked.prompts))
        with using():
            writers.give_back(generator)


def _in_place(found: dict[int, str], count: int) -> list[str]:
    return [found.get(number, "") for number in range(count)]
