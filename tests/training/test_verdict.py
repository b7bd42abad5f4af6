"""The last lines of a run: they say what its numbers mean."""

from dataclasses import replace

import pytest

from cupygpt.training.verdict import FALLING, LEVEL, OVERFITTING, Outcome, trend_of, verdict

RUN = Outcome(
    step=1000,
    steps=1000,
    seconds=100.0,
    epochs=2.0,
    tokens_per_parameter=20.0,
    dropout=0.0,
    bits_per_byte=2.5,
    best=(1000, 1.7),
    validations=[(0, 5.5), (250, 2.5), (500, 2.0), (750, 1.8), (1000, 1.7)],
    baselines=(3.3, 2.5),
    minutes=None,
)


@pytest.mark.parametrize(
    ("losses", "best", "expected"),
    [
        ([5.5, 2.5, 2.0, 1.8, 1.7], (4, 1.7), FALLING),
        ([5.5, 2.5, 1.71, 1.701, 1.70], (4, 1.70), LEVEL),
        ([5.5, 2.0, 1.7, 1.705, 1.703], (2, 1.7), LEVEL),
        ([5.5, 2.0, 1.7, 1.9, 2.2], (2, 1.7), OVERFITTING),
        ([5.5, 1.7], (1, 1.7), None),
    ],
)
def test_the_trend(losses: list[float], best: tuple[int, float], expected: str | None) -> None:
    assert trend_of(replace(RUN, validations=list(enumerate(losses)), best=best)) == expected


def test_a_last_validation_next_to_another_hides_no_trend() -> None:
    close = [(0, 5.5), (1788, 2.0), (3576, 1.75), (5364, 1.627), (5365, 1.627)]
    assert trend_of(replace(RUN, validations=close, best=(5365, 1.627))) == FALLING


def test_tokens_that_a_model_saw_before_it_was_fine_tuned_are_not_missed() -> None:
    level = [(0, 1.9), (250, 1.75), (500, 1.71), (750, 1.701), (1000, 1.7)]
    few = replace(RUN, validations=level, tokens_per_parameter=0.1)
    assert "after few tokens: a longer run will gain" in verdict(few)[-1]
    assert "validation is level" in verdict(replace(few, fine_tunes=True))[-1]
    short = replace(few, fine_tunes=True, epochs=0.2)
    assert "after few tokens: a longer run will gain" in verdict(short)[-1]


def test_a_run_that_still_falls_should_be_longer() -> None:
    lines = verdict(RUN)
    assert len(lines) == 3
    assert lines[0] == "1,000 of 1,000 steps in 100 s: 2 epochs, 20 tokens per parameter"
    assert "1.7000 nats per token, 2.5000 bits per byte, at step 1,000" in lines[1]
    assert "0.80 below the bigram model" in lines[1]
    assert lines[2].endswith("Next: twice the steps (-n)")
    assert verdict(replace(RUN, minutes=2.0))[2].endswith("Next: --minutes 4")


def test_the_validation_before_the_first_step_says_nothing_of_the_training() -> None:
    lines = verdict(replace(RUN, best=(0, 5.5), validations=[(0, 5.5)]))
    assert lines[1:] == [
        "validation loss 5.5000 nats per token before the first step; it was not measured again"
    ]
    lines = verdict(replace(RUN, best=(0, 5.5), validations=[(0, 5.5), (9, 6.0), (18, 6.1)]))
    assert lines[1].endswith("and never lower. Next: a lower learning rate (-l)")


def test_pauses_are_said_where_they_count() -> None:
    assert "validating" not in verdict(RUN)[0]
    line = verdict(replace(RUN, pauses=0.034))[0]
    assert line.endswith("; 3 % of it validating, sampling, saving")


def test_a_run_that_overfits_names_the_step_and_the_weights() -> None:
    worse = [(0, 5.5), (500, 1.7), (750, 1.8), (1000, 2.0)]
    (*_, last) = verdict(replace(RUN, validations=worse, best=(500, 1.7)))
    assert last == (
        "it overfits since step 500: now 2.0000. sample uses the best weights. "
        "Next: more text, or --dropout 0.1"
    )
    (*_, last) = verdict(replace(RUN, validations=worse, best=(500, 1.7), dropout=0.2))
    assert last.endswith("--dropout 0.3")


def test_a_level_run_needs_text_or_size() -> None:
    level = [(0, 5.5), (250, 1.71), (500, 1.701), (1000, 1.7)]
    assert verdict(replace(RUN, validations=level))[2].endswith("a larger one (-e)")
    assert verdict(replace(RUN, validations=level, epochs=20))[2].endswith("Next: more text")


def test_without_validation_nothing_is_claimed() -> None:
    lines = verdict(replace(RUN, best=None, validations=[], baselines=None))
    assert lines[1:] == [
        "it was not validated, so nobody knows how good it is: pass -j, and a -v above 0"
    ]


@pytest.mark.parametrize(
    ("loss", "words"),
    [(3.0, "between the unigram and the bigram"), (4.0, "does not know common tokens yet")],
)
def test_a_loss_above_the_baselines_is_said(loss: float, words: str) -> None:
    assert words in verdict(replace(RUN, best=(1000, loss)))[1]
