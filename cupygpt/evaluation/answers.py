"""Which choice a model takes for the best: three ways to compare the likelihoods of texts.

| way | the choice that wins has the highest | also known as |
|---|---|---|
| by sum | log-probability | acc of the lm-evaluation-harness |
| per token | log-probability / number of its tokens | llm.c's HellaSwag accuracy |
| per character | log-probability / number of its characters | acc_norm of the harness |

The first of equal ones wins. Only the tokens of the choice count; the first is predicted from the
last token of the context. Each choice is a row of its own, and a batch is as long as its longest
row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import Ids
from cupygpt.errors import DataError
from cupygpt.evaluation.questions import Question
from cupygpt.evaluation.scorer import Batch, Scorer, blank_batch, row_length
from cupygpt.evaluation.text_loss import Progress

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """How many of `questions` a model answered rightly, in the three ways.

    `by_character` is None if the characters of a choice are not known or there are none. `chance`
    is the expected share of right answers of a blind guess. `cut` questions had a context that was
    longer than the window, and lost its beginning.
    """

    questions: int
    by_sum: int
    by_token: int
    by_character: int | None
    chance: float
    cut: int

    def correct(self) -> dict[str, int | None]:
        """The numbers of right answers by name."""
        return {
            "by_sum": self.by_sum,
            "per_token": self.by_token,
            "per_character": self.by_character,
        }

    def accuracies(self) -> dict[str, float | None]:
        """The accuracies by the same names; llm.c's is per token."""
        return {way: None if n is None else self.share(n) for way, n in self.correct().items()}

    def in_short(self) -> str:
        """llm.c's accuracy in words."""
        share = self.share(self.by_token)
        return f"{self.by_token:,}/{self.questions:,} = {share:.4f} right per token"

    def share(self, correct: int) -> float:
        """The accuracy for a number of right answers."""
        return correct / self.questions

    def standard_error(self, correct: int) -> float:
        """Of the accuracy, as a sample of all possible questions."""
        p = self.share(correct)
        return math.sqrt(p * (1.0 - p) / max(1, self.questions - 1))


def answer(
    scorer: Scorer,
    questions: Sequence[Question],
    window: int,
    progress: Progress = lambda done, total: None,
) -> Answers:
    """Let the model answer; of rows longer than `window` tokens the beginning is cut off.

    Raises DataError if a choice alone is longer than that, RunError for losses that are not finite.
    """
    nats = choice_nats(scorer, questions, window, progress)
    correct = {"sum": 0, "token": 0, "character": 0}
    for question, sums in zip(questions, nats, strict=True):
        tokens = np.array([len(choice) for choice in question.choices])
        correct["sum"] += int(np.argmin(sums)) == question.label
        correct["token"] += int(np.argmin(sums / tokens)) == question.label
        if question.characters and all(question.characters):
            wins = int(np.argmin(sums / np.array(question.characters)))
            correct["character"] += wins == question.label
    has_characters = all(q.characters is not None and all(q.characters) for q in questions)
    return Answers(
        len(questions),
        correct["sum"],
        correct["token"],
        correct["character"] if has_characters else None,
        math.fsum(1 / len(question.choices) for question in questions) / len(questions),
        sum(_longest(question) > window for question in questions),
    )


def merged_answers(parts: Sequence[Answers]) -> Answers:
    """The answers to several groups of questions as one."""
    total = sum(part.questions for part in parts)
    characters = [part.by_character for part in parts]
    return Answers(
        total,
        sum(part.by_sum for part in parts),
        sum(part.by_token for part in parts),
        None if None in characters else sum(count or 0 for count in characters),
        math.fsum(part.chance * part.questions for part in parts) / total,
        sum(part.cut for part in parts),
    )


def choice_nats(
    scorer: Scorer,
    questions: Sequence[Question],
    window: int,
    progress: Progress = lambda done, total: None,
) -> list[npt.NDArray[np.float64]]:
    """-log p of each choice of each question, in nats."""
    rows = _Rows(questions, window)
    nats = np.zeros(len(rows.lengths))
    done = 0
    for batch, losses in scorer.losses(rows.batches(scorer, window)):
        nats[batch.tag] = losses.sum(axis=1, dtype=np.float64)
        done += len(losses)
        progress(done, len(nats))
    return np.split(nats, rows.first[1:])


def check_choices_fit(questions: Sequence[Question], window: int) -> None:
    """Raise DataError if a choice has more than `window` tokens: it cannot be read at once."""
    for number, question in enumerate(questions):
        longest = max(map(len, question.choices))
        if longest > window:
            raise DataError(
                f"a choice of question {number:,} (counted from 0) has {longest:,} tokens, but the "
                f"model reads {window:,} at a time. Use a model with a longer context."
            )


def _longest(question: Question) -> int:
    """Inputs of the longest row of a question: the last token of a row is only predicted."""
    return len(question.context) + max(map(len, question.choices)) - 1


class _Rows:
    """One row for each choice, numbered through. `first` is the first row of each question."""

    def __init__(self, questions: Sequence[Question], window: int) -> None:
        self._questions = questions
        counts = [len(question.choices) for question in questions]
        self.first: Counts = np.cumsum([0, *counts[:-1]])
        self._owners = np.repeat(np.arange(len(questions)), counts)
        wanted = [
            len(question.context) + len(choice) - 1
            for question in questions
            for choice in question.choices
        ]
        self.lengths: Counts = np.minimum(np.array(wanted), window)
        check_choices_fit(questions, window)

    def batches(self, scorer: Scorer, window: int) -> Iterator[Batch[Counts]]:
        """All rows, the longest first; the tag of a batch holds their numbers."""
        order = np.argsort(-self.lengths, kind="stable")
        start = 0
        while start < len(order):
            length = row_length(int(self.lengths[order[start]]), window)
            numbers = order[start : start + scorer.rows_of(length)]
            inputs, targets = blank_batch(len(numbers), length)
            for row, number in enumerate(numbers.tolist()):
                self._fill(number, inputs[row], targets[row])
            yield Batch(inputs, targets, numbers)
            start += len(numbers)

    def _fill(self, number: int, inputs: Ids, targets: Ids) -> None:
        owner, length = self._owners[number], self.lengths[number]
        question = self._questions[owner]
        choice = question.choices[number - self.first[owner]]
        ids = np.concatenate([question.context, choice])[-(length + 1) :]
        inputs[:length] = ids[:-1]
        targets[length - len(choice) : length] = choice
