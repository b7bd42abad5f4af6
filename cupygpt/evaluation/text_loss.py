"""The loss of a model on texts: of each, of all, by position in the window, and by document."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cupygpt.data.tokenizer import Tokenizer
from cupygpt.evaluation.scorer import Scorer
from cupygpt.evaluation.windows import TokenText, counted, num_windows, text_batches

START_TOKENS = 24
"""Tokens from the beginning of a document that show which one it is."""

Progress = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


@dataclass(frozen=True)
class Loss:
    """The summed loss in nats of some predicted tokens, and the bytes of text they stand for.

    `num_bytes` is None where no tokenizer is known; end of text counts no bytes.
    """

    tokens: int
    nats: float
    num_bytes: int | None

    @property
    def mean(self) -> float:
        """Nats per token; NaN of no token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp of the mean; infinite where a float cannot hold it."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits for each byte of the text; None where the bytes are not known, or there are none."""
        return self.nats / math.log(2.0) / self.num_bytes if self.num_bytes else None


@dataclass(frozen=True)
class DocumentLoss:
    """The loss on one document, which starts at token `start` of text number `text`.

    The end of text before it belongs to the document before, whose end it is. `beginning` are its
    first ids.
    """

    text: int
    start: int
    beginning: tuple[int, ...]
    loss: Loss


@dataclass(frozen=True)
class TextLosses:
    """What came of one evaluation. `by_position[t]` is of targets with t + 1 tokens before them.

    `documents` is None if they were not asked for.
    """

    texts: list[Loss]
    by_position: list[Loss]
    documents: list[DocumentLoss] | None

    @property
    def total(self) -> Loss:
        """The loss on all texts together."""
        return merged(self.texts)


def merged(losses: Sequence[Loss]) -> Loss:
    """Several losses as one."""
    sizes = [loss.num_bytes for loss in losses]
    return Loss(
        sum(loss.tokens for loss in losses),
        math.fsum(loss.nats for loss in losses),
        None if None in sizes else sum(size or 0 for size in sizes),
    )


def text_losses(
    scorer: Scorer,
    texts: Sequence[TokenText],
    tokenizer: Tokenizer | None,
    *,
    window: int,
    stride: int,
    by_document: bool = False,
    progress: Progress = lambda done, total: None,
) -> TextLosses:
    """Predict every token of the texts but the first of each; windows.py says from how much.

    `by_document` needs a tokenizer with an end of text. Raises DataError for ids that the model
    does not have, RunError for losses that are not finite.
    """
    lengths = None if tokenizer is None else tokenizer.text_lengths
    by_text, by_position = _Sums(len(texts), lengths), _Sums(window, lengths)
    documents = _Documents(texts, tokenizer) if by_document and tokenizer else None
    done, total = 0, num_windows(texts, window, stride)
    for batch, losses in scorer.losses(text_batches(texts, scorer, window, stride)):
        is_counted, rows = counted(batch.targets), batch.tag
        targets, nats = batch.targets[is_counted], losses[is_counted]
        row, position = np.nonzero(is_counted)
        by_text.add(rows.texts[row], targets, nats)
        by_position.add(position, targets, nats)
        if documents is not None:
            owners = documents.owners(rows.texts, rows.starts, batch.inputs)
            documents.sums.add(owners[is_counted], targets, nats)
        done += len(losses)
        progress(done, total)
    return TextLosses(
        by_text.losses(),
        by_position.losses(),
        None if documents is None else documents.losses(),
    )


class _Sums:
    """Sums of losses in `size` groups. `lengths` are the bytes of each id, None if not known."""

    def __init__(self, size: int, lengths: npt.NDArray[np.int64] | None) -> None:
        self._lengths = lengths
        self._tokens = np.zeros(size, np.int64)
        self._nats = np.zeros(size)
        self._bytes = np.zeros(size, np.int64)

    def add(
        self, groups: npt.NDArray[np.int64], targets: np.ndarray, nats: npt.NDArray[np.float32]
    ) -> None:
        """The losses `nats` of `targets`, each to its group; all (n,)."""
        if not len(groups):
            return
        # A batch touches few neighbouring groups of what may be millions.
        first = int(groups.min())
        near = groups - first
        size = int(near.max()) + 1
        part = slice(first, first + size)
        self._tokens[part] += np.bincount(near, minlength=size)
        self._nats[part] += np.bincount(near, weights=nats, minlength=size)
        if self._lengths is not None:
            sizes = np.bincount(near, weights=self._lengths[targets], minlength=size)
            self._bytes[part] += sizes.astype(np.int64)

    def losses(self) -> list[Loss]:
        known = self._lengths is not None
        sums = zip(self._tokens.tolist(), self._nats.tolist(), self._bytes.tolist(), strict=True)
        return [Loss(n, nats, size if known else None) for n, nats, size in sums]


class _Documents:
    """The documents of all texts, numbered through; each begins with an end of text.

    What stands before the first end of text of a file is a document as well.
    """

    def __init__(self, texts: Sequence[TokenText], tokenizer: Tokenizer) -> None:
        self._texts = texts
        self._ends = [np.flatnonzero(text.tokens == tokenizer.eot) for text in texts]
        self._eot = tokenizer.eot
        self._first = np.cumsum([0, *(len(ends) + 1 for ends in self._ends)])
        self.sums = _Sums(int(self._first[-1]), tokenizer.text_lengths)

    def owners(
        self, texts: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], inputs: np.ndarray
    ) -> npt.NDArray[np.int64]:
        """The document of each target of a batch (B, T): that of the token before the target."""
        before = [
            self._first[text] + np.searchsorted(self._ends[text], start)
            for text, start in zip(texts.tolist(), starts.tolist(), strict=True)
        ]
        ended = np.cumsum(inputs == self._eot, axis=1, dtype=np.int64)
        return np.add(np.asarray(before, np.int64)[:, None], ended)

    def losses(self) -> list[DocumentLoss]:
        """The documents in their order, without those that hold no target."""
        found = []
        losses = self.sums.losses()
        for number, (text, ends) in enumerate(zip(self._texts, self._ends, strict=True)):
            starts = [0, *(int(end) + 1 for end in ends)]
            of_text = losses[self._first[number] : self._first[number + 1]]
            stops = [*(int(end) for end in ends), text.num_tokens]
            for start, stop, loss in zip(starts, stops, of_text, strict=True):
                if loss.tokens:
                    beginning = tuple(
                        map(int, text.tokens[start : min(stop, start + START_TOKENS)])
                    )
                    found.append(DocumentLoss(number, start, beginning, loss))
        return found
