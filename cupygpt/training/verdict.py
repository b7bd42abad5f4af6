"""The last lines of a run: what came of it, what that means, and the one thing to change next."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cupygpt.training.reference import ReferenceCurve

FALLING, LEVEL, OVERFITTING = "falling", "level", "overfitting"

NOISE = 0.005
"""A share of the loss: smaller changes say nothing."""

LAST_PART = 0.75
"""A loss is compared with the one at this share of the steps."""

FEW_TOKENS_PER_PARAMETER = 5.0
MANY_EPOCHS = 3.0


@dataclass(frozen=True)
class Outcome:
    """What is known at the end of a run.

    `validations` are (step, nats per token) of this command, in order; `best` is the lowest of the
    whole run, and its step. `baselines` are the unigram's and the bigram's loss on the same rows.
    """

    step: int
    steps: int
    seconds: float
    epochs: float
    tokens_per_parameter: float
    dropout: float
    bits_per_byte: float | None
    best: tuple[int, float] | None
    validations: Sequence[tuple[int, float]]
    baselines: tuple[float, float] | None
    minutes: float | None
    reference: ReferenceCurve | None = None
    ran_out_of_patience: bool = False
    fine_tunes: bool = False
    """The model was trained before, on tokens that are not counted here."""
    pauses: float = 0.0
    """The share of the time that validations, samples and checkpoints took."""


def verdict(outcome: Outcome) -> list[str]:
    """Two to five lines for the console."""
    lines = [
        f"{outcome.step:,} of {outcome.steps:,} steps in {outcome.seconds:.0f} s: "
        f"{outcome.epochs:.3g} epochs, {outcome.tokens_per_parameter:.3g} tokens per parameter"
    ]
    if outcome.pauses >= 0.005:
        lines[0] += f"; {100 * outcome.pauses:.0f} % of it validating, sampling, saving"
    if outcome.ran_out_of_patience:
        lines[0] += "; stopped because validation no longer improved (--patience)"
    if outcome.best is None or not math.isfinite(outcome.best[1]):
        return [
            *lines,
            "it was not validated, so nobody knows how good it is: pass -j, and a -v above 0",
        ]
    if outcome.best[0] == 0:
        return [*lines, _before_the_first_step(outcome)]
    lines.append(_against_the_baselines(outcome))
    if outcome.reference is not None:
        reference = outcome.reference
        gap = round(outcome.best[1] - reference.best, 4) + 0.0  # not -0.0
        lines.append(
            f"reference on the same data: {reference.best:.4f} by {reference.name}; this run is "
            f"{gap:+.4f} from it"
        )
    trend = trend_of(outcome)
    if trend is not None:
        lines.append(_meaning(outcome, trend))
    return lines


def trend_of(outcome: Outcome) -> str | None:
    """Whether validation still falls, is level or rises; None where too few of them tell."""
    if outcome.best is None or len(outcome.validations) < 3:
        return None
    (first, _), (last, loss) = outcome.validations[0], outcome.validations[-1]
    if loss > outcome.best[1] * (1 + NOISE):
        return OVERFITTING
    # Validations need not lie at equal distances: the last one may follow its neighbour at once.
    a_quarter_ago = first + LAST_PART * (last - first)
    before = [known for step, known in outcome.validations if step <= a_quarter_ago][-1]
    return FALLING if before > loss * (1 + NOISE) else LEVEL


def _before_the_first_step(outcome: Outcome) -> str:
    """No validation of trained weights was better than that of the initial ones."""
    assert outcome.best is not None
    line = f"validation loss {outcome.best[1]:.4f} nats per token before the first step"
    if not outcome.validations or outcome.validations[-1][0] == 0:
        return f"{line}; it was not measured again"
    return f"{line}, and never lower. Next: a lower learning rate (-l)"


def _against_the_baselines(outcome: Outcome) -> str:
    assert outcome.best is not None
    step, loss = outcome.best
    line = f"best validation loss {loss:.4f} nats per token"
    if outcome.bits_per_byte is not None:
        line += f", {outcome.bits_per_byte:.4f} bits per byte,"
    line += f" at step {step:,}"
    if outcome.baselines is not None:
        unigram, bigram = outcome.baselines
        if loss < bigram:
            line += f": {bigram - loss:.2f} below the bigram model, so it knows more than pairs"
        elif loss < unigram:
            line += (
                ": between the unigram and the bigram model, so it knows which tokens are common"
            )
        else:
            line += ": not below the unigram model, so it does not know common tokens yet"
    return line


def _meaning(outcome: Outcome, trend: str) -> str:
    if trend == OVERFITTING:
        assert outcome.best is not None
        more = 0.1 if outcome.dropout < 0.1 else round(min(0.5, outcome.dropout + 0.1), 2)
        return (
            f"it overfits since step {outcome.best[0]:,}: now {outcome.validations[-1][1]:.4f}. "
            f"sample uses the best weights. Next: more text, or --dropout {more:g}"
        )
    saw_few = outcome.tokens_per_parameter < FEW_TOKENS_PER_PARAMETER
    if outcome.fine_tunes:  # most of its tokens came before
        saw_few = outcome.epochs < 1
    if trend == FALLING or saw_few:
        length = "twice the steps (-n)"
        if outcome.minutes is not None:
            length = f"--minutes {2 * outcome.minutes:g}"
        state = "still falls" if trend == FALLING else "hardly falls, after few tokens"
        return f"validation {state}: a longer run will gain. Next: {length}"
    if outcome.epochs > MANY_EPOCHS:
        return "validation is level: the text has little more for this model. Next: more text"
    return "validation is level: this model has learnt what it can. Next: a larger one (-e)"
