"""The validations of a run: their losses, in nats per token and bits per byte."""

from dataclasses import dataclass

from cupygpt.console.console import Console
from cupygpt.distributed.ranks import Ranks
from cupygpt.evaluation.run_questions import RunQuestions
from cupygpt.evaluation.scorer import Buffers, Scorer
from cupygpt.files import user_path
from cupygpt.planning.open_data import Data
from cupygpt.planning.plan import Plan, validation_batches
from cupygpt.training.baselines import bits_per_byte, bytes_per_token, ngram_baselines
from cupygpt.training.reference import find_reference
from cupygpt.training.trainer import Trainer, mean_loss


@dataclass(frozen=True)
class Validation:
    """One validation: its loss, and what the reference run had reached after as many tokens."""

    loss: float
    bits_per_byte: float | None
    reference: float | None


class Validator:
    """Evaluates the validation rows; `history` holds (step, loss) of those of this command."""

    def __init__(self, plan: Plan, data: Data, ranks: Ranks) -> None:
        model, rows = plan.shape.config, plan.validation
        self.is_there = rows is not None
        self.history: list[tuple[int, float]] = []
        self.reference = find_reference(data.record(), model.num_parameters)
        self.baselines = ngram_baselines(rows, data.train, model.V)
        self._bytes_per_token = bytes_per_token(rows, data.tokenizer, model.V)
        self._plan, self._ranks = plan, ranks
        self._batches = validation_batches(plan, ranks.rank)

    def validate(self, trainer: Trainer, step: int) -> Validation:
        """Evaluate the rows with the weights of `step`; all ranks call, and get the same."""
        assert self._batches is not None
        sums = self._ranks.all_gather_object(
            trainer.sum_losses((x, y) for x, y, _ in self._batches)
        )
        # Added in the order of the batches: then the mean equals that of one rank to the last bit.
        loss = mean_loss(of_rank for batch in zip(*sums, strict=True) for of_rank in batch)
        self.history.append((step, loss))
        known = self.reference.at(self._plan.tokens_at(step)) if self.reference else None
        return Validation(loss, self.bits_per_byte(loss), known)

    def bits_per_byte(self, loss: float) -> float | None:
        """Bits per byte of a loss in nats per token; None if no tokenizer is known."""
        return bits_per_byte(loss, self._bytes_per_token)


def open_questions(
    trainer: Trainer, data: Data, ranks: Ranks, name: str | None, resumed: Console | None
) -> RunQuestions | None:
    """The questions of the file `name`, answered in the memory of the trainer; None for no name.

    A run that is `resumed` goes on without a file that is gone, and says so there. Raises DataError
    for a file that does not fit the model.
    """
    if name is None:
        return None
    path, shape, model = user_path(name), trainer.shape, trainer.model
    if resumed and not path.is_file():
        resumed.warn(f"--hellaswag {name} is not there any more: the run goes on without it")
        return None
    memory = Buffers(
        model.acts.flat, model.scratch.flat, shape.B * shape.T, len(model.scratch.logits)
    )
    scorer = Scorer(trainer.device, shape.config, trainer.params, shape.precision, memory)
    return RunQuestions(path, scorer, shape.T, data.tokenizer, ranks)
