"""Questions that a training run answers after its validations, as llm.c does with HellaSwag."""

from dataclasses import astuple
from pathlib import Path

from cupygpt.data.tokenizer import Tokenizer
from cupygpt.distributed.ranks import Ranks
from cupygpt.evaluation.answers import Answers, answer, check_choices_fit, merged_answers
from cupygpt.evaluation.questions import read_questions
from cupygpt.evaluation.scorer import Scorer


class RunQuestions:
    """The questions of a file, of which each rank answers an equal share.

    Raises DataError for a file that cannot be used with the model.
    """

    def __init__(
        self, path: Path, scorer: Scorer, window: int, tokenizer: Tokenizer | None, ranks: Ranks
    ) -> None:
        self.path = path
        self._scorer, self._window, self._ranks = scorer, window, ranks
        questions = read_questions(path, tokenizer, scorer.config.V)
        check_choices_fit(questions, window)
        share = -(-len(questions) // ranks.world)
        self._own = questions[ranks.rank * share : (ranks.rank + 1) * share]

    def answers(self) -> Answers:
        """All questions, with the weights as they are now; all ranks call, and get the same."""
        own = astuple(answer(self._scorer, self._own, self._window)) if self._own else None
        return merged_answers(
            [Answers(*part) for part in self._ranks.all_gather_object(own) if part is not None]
        )
