"""What a run does where its flags leave it open."""

import math
from typing import Any

import pytest

from cupygpt.config import GPTConfig
from cupygpt.flags.config import TrainConfig
from cupygpt.planning.defaults import (
    CPU_MINUTES,
    MOST_EPOCHS,
    batch_settings,
    file_settings,
    fine_tuning_settings,
    fine_tuning_step_tokens,
    length_settings,
    settle,
    size_for,
)

LETTERS = GPTConfig(maxT=256, V=257, L=6, NH=6, C=384)
SMALL = GPTConfig(maxT=64, V=257, L=4, NH=4, C=64)
WORDS = GPTConfig(maxT=256, V=50257, L=4, NH=4, C=128)


def settled(model: GPTConfig, *, given: dict[str, Any] | None = None, **facts: int) -> TrainConfig:
    known = {"steps": 1500, "step_tokens": 2**14, "train_tokens": 10**6, "val_tokens": 10**5}
    return settle(TrainConfig(**(given or {})), model, **{**known, **facts})


def test_weights_from_a_file_train_as_in_llmc() -> None:
    """Learning rate 3e-4 without warm-up, decay or dropout; beta2 0.95; 4 rows a batch."""
    config = settle(
        file_settings(TrainConfig()),
        WORDS,
        steps=1000,
        step_tokens=1024,
        train_tokens=300_000,
        val_tokens=30_000,
    )
    assert (config.batch_size, config.learning_rate, config.warmup) == (4, 3e-4, 0)
    assert (config.final_fraction, config.weight_decay, config.dropout) == (1.0, 0.0, 0.0)
    assert (config.beta1, config.beta2, config.grad_clip) == (0.9, 0.95, 1.0)


def test_given_flags_win() -> None:
    given = {"learning_rate": 1.0, "warmup": 0, "dropout": 0.0, "val_every": 7, "beta2": 0.5}
    config = settled(LETTERS, given=given)
    assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize(
    ("model", "low", "high"),
    [(SMALL, 6e-3, 1.1e-2), (WORDS, 1e-3, 2e-3), (LETTERS, 1e-3, 2e-3)],
    ids=["0.2M", "7.3M", "10.9M"],
)
def test_the_learning_rate_lies_where_runs_of_that_size_were_best(
    model: GPTConfig, low: float, high: float
) -> None:
    assert low <= settled(model).learning_rate <= high


def test_a_large_model_that_reads_a_small_text_again_and_again_gets_dropout() -> None:
    assert settled(LETTERS).dropout == 0.2  # 25 epochs, 11 parameters per token
    assert settled(SMALL, steps=5000, step_tokens=1024).dropout == 0.0  # 5 epochs, 0.2
    assert settled(LETTERS, train_tokens=10**9).dropout == 0.0
    assert 0 < settled(LETTERS, steps=500).dropout < 0.2


def test_a_constant_rate_has_neither_warm_up_nor_decay() -> None:
    config = settled(LETTERS, given={"schedule": "constant"})
    assert (config.warmup, config.final_fraction) == (0, 1.0)


def test_reports_come_about_ten_and_five_times() -> None:
    config = settled(LETTERS, steps=1500)
    assert config.val_every == 150
    assert config.sample_every == 300
    assert settled(LETTERS, steps=1).val_every == 1


def test_validation_takes_at_most_a_twentieth_of_the_time() -> None:
    """A validation of 10^5 tokens costs a third of that; the run trains on 1.5 million."""
    config = settled(SMALL, steps=1500, step_tokens=1000, val_tokens=100_000)
    validations = 1500 / config.val_every
    assert validations >= 2
    assert validations * 100_000 / 3 <= 0.06 * 1_500_000
    assert settled(SMALL, val_tokens=0).val_every >= 1


def test_a_cpu_sizes_by_time_and_a_gpu_by_text() -> None:
    def cpu(minutes: float | None) -> int:
        return size_for(on_gpu=False, minutes=minutes, tokens=10**6, V=257).C

    assert cpu(None) == cpu(CPU_MINUTES) < cpu(8) < cpu(60)

    def gpu(tokens: int, V: int) -> int:
        return size_for(on_gpu=True, minutes=None, tokens=tokens, V=V).C

    assert gpu(10**6, 257) == 384
    assert gpu(3 * 10**5, 50257) < gpu(10**8, 50257) < gpu(10**10, 50257)


def test_a_step_of_all_ranks_has_the_tokens_that_the_size_asks_for() -> None:
    size = size_for(on_gpu=True, minutes=None, tokens=10**6, V=257)
    for world in (1, 4):
        config = batch_settings(TrainConfig(), T=256, step_tokens=size.step_tokens, world=world)
        assert config.batch_size * 256 * world == size.step_tokens
    assert batch_settings(TrainConfig(), T=10**6, step_tokens=2**14, world=1).batch_size == 1


def test_the_length_of_a_new_models_run() -> None:
    on_cpu, why = length_settings(TrainConfig(), SMALL, 10**6, on_gpu=False)
    assert on_cpu.minutes == CPU_MINUTES
    assert "--minutes" in why
    small_text, _ = length_settings(TrainConfig(), LETTERS, 10**6, on_gpu=True)
    assert small_text.epochs == MOST_EPOCHS
    large_text, why = length_settings(TrainConfig(), LETTERS, 10**9, on_gpu=True)
    assert large_text.epochs is not None
    assert math.isclose(large_text.epochs * 10**9, 20 * LETTERS.num_parameters, rel_tol=0.01)
    assert "20 tokens" in why
    for given in ({"steps": 3}, {"epochs": 2.0}, {"minutes": 1.0}):
        assert length_settings(TrainConfig(**given), SMALL, 10**6, on_gpu=True) == (
            TrainConfig(**given),
            "",
        )


GPT2 = GPTConfig(maxT=1024, V=50257, L=12, NH=12, C=768)


def test_gpt2_is_fine_tuned_with_the_rate_that_is_usual_for_it() -> None:
    """transformers takes 5e-5; small models, which were trained for minutes, learn faster."""
    assert fine_tuning_settings(GPT2, 10**6) == {"learning_rate": 5e-5, "dropout": 0.1}
    assert fine_tuning_settings(GPT2, 10**9)["dropout"] == 0.0
    small = fine_tuning_settings(SMALL, 10**6)
    assert small["learning_rate"] == pytest.approx(settled(SMALL).learning_rate / 2, rel=0.03)
    assert small["dropout"] == 0.0


def test_fine_tuning_has_three_epochs_and_at_least_200_steps_of_them() -> None:
    for tokens in (10**4, 10**5, 10**6):
        steps = 3 * tokens / fine_tuning_step_tokens(tokens)
        assert 200 <= steps < 400 or fine_tuning_step_tokens(tokens) == 2**13
    assert fine_tuning_step_tokens(10**9) == 2**13
    assert fine_tuning_step_tokens(1) == 1
    config, why = length_settings(TrainConfig(), GPT2, 10**6, on_gpu=False, fine_tunes=True)
    assert (config.epochs, config.minutes) == (3.0, None)
    assert "fine-tuning" in why
    given = TrainConfig(steps=5)
    assert length_settings(given, GPT2, 10**6, on_gpu=True, fine_tunes=True) == (given, "")


def test_given_flags_win_in_fine_tuning_too() -> None:
    facts = {"steps": 100, "step_tokens": 2**13, "train_tokens": 10**6, "val_tokens": 0}
    given = {"learning_rate": 1.0, "dropout": 0.3, "warmup": 7}
    config = settle(TrainConfig(**given), GPT2, **facts, fine_tunes=True)
    assert {name: getattr(config, name) for name in given} == given
    open_ = settle(TrainConfig(), GPT2, **facts, fine_tunes=True)
    assert (open_.learning_rate, open_.dropout, open_.warmup) == (5e-5, 0.1, 10)
    assert (open_.final_fraction, open_.weight_decay) == (0.05, 0.1)
