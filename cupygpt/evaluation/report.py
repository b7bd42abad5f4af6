"""What came of an evaluation, as tables for a person and as an object for JSON."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupygpt.console.safe_text import safe_text
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.evaluation.answers import Answers
from cupygpt.evaluation.text_loss import DocumentLoss, Loss, TextLosses, merged

MOST_SHOWN = 20
"""So many documents are shown; of more, half of them with the highest and half with the lowest
loss."""

NAME_WIDTH = 34


@dataclass(frozen=True)
class Setting:
    """With what the numbers were measured."""

    model: str
    precision: str
    device: str
    window: int
    stride: int


@dataclass(frozen=True)
class Report:
    """The results. `names` are those of the texts; by_position and by_document: show them too."""

    setting: Setting
    names: list[str]
    texts: TextLosses | None
    questions: list[tuple[Path, Answers]]
    tokenizer: Tokenizer | None
    by_position: bool

    def lines(self) -> Iterator[str]:
        """The tables for a person."""
        if self.texts is not None:
            yield from self._text_lines(self.texts)
        for path, answers in self.questions:
            yield from question_lines(path.name, answers)

    def json(self) -> str:
        """All numbers on one line; what is not known, or not finite, is null."""
        values: dict[str, Any] = {**vars(self.setting)}
        if self.texts is not None:
            values["texts"] = [
                {"file": name, **_loss_values(loss)}
                for name, loss in zip(self.names, self.texts.texts, strict=True)
            ]
            values["all_texts"] = _loss_values(self.texts.total)
            if self.by_position:
                values["by_position"] = [_loss_values(loss) for loss in self.texts.by_position]
            if self.texts.documents is not None:
                values["by_document"] = [self._document_values(one) for one in self.texts.documents]
        if self.questions:
            values["questions"] = [
                {"file": str(path), **_answer_values(answers)} for path, answers in self.questions
            ]
        return json.dumps(values, allow_nan=False)

    def _text_lines(self, texts: TextLosses) -> Iterator[str]:
        yield _header("text")
        for name, loss in zip(self.names, texts.texts, strict=True):
            yield _row(_end_of(name), loss)
        if len(self.names) > 1:
            yield _row("all together", texts.total)
        if self.by_position:
            yield ""
            yield _header("tokens before, in the window")
            for name, loss in position_groups(texts.by_position):
                yield _row(name, loss)
        if texts.documents is not None:
            yield ""
            yield from self._document_lines(texts.documents)

    def _document_lines(self, documents: Sequence[DocumentLoss]) -> Iterator[str]:
        means = [one.loss.mean for one in documents]
        yield (
            f"{len(documents):,} documents, median loss {statistics.median(means):.4f}, mean of "
            f"their losses {math.fsum(means) / len(means):.4f}"
        )
        order = sorted(documents, key=lambda one: -one.loss.mean)
        half = MOST_SHOWN // 2
        if len(order) <= MOST_SHOWN:
            groups = [("document", order)]
        else:
            groups = [("highest loss", order[:half]), ("lowest loss", order[-half:])]
        for title, group in groups:
            yield _header(title)
            for one in group:
                yield _row(self._document_name(one), one.loss)

    def _document_name(self, document: DocumentLoss) -> str:
        """How a document begins, on one line."""
        if self.tokenizer is None:
            return f"token {document.start:,}"
        text = " ".join(self.tokenizer.decode(document.beginning).split())
        return safe_text(text) or f"token {document.start:,}"

    def _document_values(self, document: DocumentLoss) -> dict[str, Any]:
        place = {"file": self.names[document.text], "first_token": document.start}
        return {**place, **_loss_values(document.loss)}


def position_groups(by_position: Sequence[Loss]) -> Iterator[tuple[str, Loss]]:
    """The positions in groups that double: 1, 2, 3 to 4, 5 to 8, ... tokens before the target."""
    start = 0
    while start < len(by_position):
        stop = min(len(by_position), max(start + 1, 2 * start))
        group = merged(by_position[start:stop])
        if group.tokens:
            yield f"{start + 1:,}" if stop == start + 1 else f"{start + 1:,} to {stop:,}", group
        start = stop


def question_lines(name: str, answers: Answers) -> Iterator[str]:
    """The three accuracies."""
    n = answers.questions
    counted = f"{n:,} question{'s' * (n != 1)}"
    yield f"{safe_text(name)}: {counted}; a blind guess is right in {100 * answers.chance:.2f} %"
    ways = (
        ("by sum", answers.by_sum),
        ("per token (llm.c)", answers.by_token),
        ("per character (lm-evaluation-harness)", answers.by_character),
    )
    for way, correct in ways:
        if correct is None:
            yield f"  {way:<38} not known: it needs the tokenizer, and characters in each choice"
            continue
        share, error = answers.share(correct), answers.standard_error(correct)
        yield f"  {way:<38} {correct:>6,} of {n:,} = {share:.4f} ± {error:.4f}"
    if answers.cut:
        yield (
            f"  {answers.cut:,} questions are longer than the window: their beginning was cut off"
        )


def _end_of(path: str) -> str:
    """A path of at most NAME_WIDTH characters: its end says most."""
    return safe_text(path if len(path) <= NAME_WIDTH else f"...{path[3 - NAME_WIDTH :]}")


def _header(name: str) -> str:
    return f"{name:<{NAME_WIDTH}} {'tokens':>12} {'loss':>9} {'perplexity':>11} {'bits/byte':>9}"


def _row(name: str, loss: Loss) -> str:
    if len(name) > NAME_WIDTH:
        name = f"{name[: NAME_WIDTH - 3]}..."
    bits = "?" if loss.bits_per_byte is None else f"{loss.bits_per_byte:.4f}"
    perplexity = f"{loss.perplexity:.2f}" if loss.perplexity < 1e6 else f"{loss.perplexity:.2e}"
    return f"{name:<{NAME_WIDTH}} {loss.tokens:>12,} {loss.mean:>9.4f} {perplexity:>11} {bits:>9}"


def _loss_values(loss: Loss) -> dict[str, Any]:
    return {
        "tokens": loss.tokens,
        "bytes": loss.num_bytes,
        "loss": _finite(loss.mean),
        "perplexity": _finite(loss.perplexity),
        "bits_per_byte": loss.bits_per_byte,
    }


def _answer_values(answers: Answers) -> dict[str, Any]:
    return {
        "questions": answers.questions,
        "chance": answers.chance,
        "cut": answers.cut,
        "correct": answers.correct(),
        "accuracy": answers.accuracies(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
