"""Whole texts as rows: every token but the first of a text is predicted once.

A text that is longer than the window is read in windows of T tokens, each `stride` tokens after the
one before. Of every window but the first, only the last `stride` targets count: those that the
window before has not predicted. With stride = T the windows do not overlap, as in a validation
during training; with a smaller one a token has at least T - stride tokens before it, at the cost of
T / stride times the work. A window never reaches into another file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import Ids, Tokens
from cupygpt.data.validation import IGNORED_TARGET
from cupygpt.errors import DataError
from cupygpt.evaluation.scorer import Batch, Scorer, blank_batch, row_length


class TokenText(Protocol):
    """A text as tokens: a TokenShard, or a text file that was encoded."""

    @property
    def path(self) -> Path:
        """The file that it comes from."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""

    @property
    def tokens(self) -> Tokens:
        """(num_tokens,) uint16 or uint32."""


@dataclass(frozen=True, eq=False)
class EncodedText:
    """The tokens of a text file, in memory."""

    path: Path
    tokens: Tokens

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)


class Window(NamedTuple):
    """`length` inputs of text number `text` from token `start` on; targets from `first` on count.

    Target t of a window is the token that follows its input t.
    """

    text: int
    start: int
    length: int
    first: int


@dataclass(frozen=True)
class WindowBatch:
    """What is known of each row (B,) of a batch: the fields of its window."""

    texts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def windows_of(text: int, num_tokens: int, T: int, stride: int) -> Iterator[Window]:
    """The windows of one text, in its order. All but the last have T inputs."""
    num_targets = num_tokens - 1
    start = predicted = 0
    while predicted < num_targets:
        length = min(T, num_targets - start)
        yield Window(text, start, length, predicted - start)
        predicted = start + length
        start += stride


def text_batches(
    texts: Sequence[TokenText], scorer: Scorer, T: int, stride: int
) -> Iterator[Batch[WindowBatch]]:
    """All windows of the texts in batches: first those of T inputs, then the shorter ones.

    Raises DataError, while iterating, if a token id is not below the model's V.
    """
    short: list[Window] = []
    full: list[Window] = []
    V = scorer.config.V
    for number, text in enumerate(texts):
        for window in windows_of(number, text.num_tokens, T, stride):
            if window.length < T:
                short.append(window)
                continue
            full.append(window)
            if len(full) == scorer.rows_of(T):
                yield _batch(texts, full, T, V)
                full = []
    if full:
        yield _batch(texts, full, T, V)
    short.sort(key=lambda window: -window.length)
    while short:
        length = row_length(short[0].length, T)
        rows = scorer.rows_of(length)
        yield _batch(texts, short[:rows], length, V)
        short = short[rows:]


def num_windows(texts: Sequence[TokenText], T: int, stride: int) -> int:
    """How many windows the texts have together."""
    targets = (text.num_tokens - 1 for text in texts)
    return sum(1 + -(-max(0, n - T) // stride) for n in targets if n > 0)


def _batch(
    texts: Sequence[TokenText], windows: Sequence[Window], length: int, V: int
) -> Batch[WindowBatch]:
    inputs, targets = blank_batch(len(windows), length)
    for row, (text, start, count, first) in enumerate(windows):
        tokens = texts[text].tokens[start : start + count + 1]
        inputs[row, :count] = tokens[:-1]
        targets[row, first:count] = tokens[first + 1 :]
        if int(tokens.max()) >= V:
            raise _id_error(texts[text], start, tokens, V)
    tag = WindowBatch(
        np.array([window.text for window in windows]),
        np.array([window.start for window in windows]),
    )
    return Batch(inputs, targets, tag)


def _id_error(text: TokenText, start: int, tokens: Tokens, V: int) -> DataError:
    place = int(np.argmax(tokens >= V))
    return DataError(
        f"{text.path}: token {start + place:,} is id {tokens[place]}, but the model's vocabulary "
        f"has {V:,} ids (0 to {V - 1}). These tokens were made with another tokenizer than the "
        f"model's."
    )


def counted(targets: Ids) -> npt.NDArray[np.bool_]:
    """Which targets of a batch count."""
    return np.not_equal(targets, IGNORED_TARGET)
