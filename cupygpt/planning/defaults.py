"""What a run does where its flags leave it open.

A run from a plain model file, of which nothing is known, gets llm.c's defaults, which stand in the
fields of the flags. A new model gets what was measured to be good: its size from the time or the
text that there is for it, the rest from its size and the length of the run. The rules were fitted
to some 180 runs on four texts, from 0.2 to 11 million parameters and one to a hundred epochs;
`tools/try_defaults.py` repeats such a grid. The first table shows the choices about size, batch and
learning; run.json records all.

A trained model (a run, a Hugging Face folder, or what `convert` made from one) is fine-tuned:

| setting | value | why |
|---|---|---|
| rows | as long as those that it was trained on | positions beyond them are noise |
| length | 3 epochs | GPT-1's fine-tuning (Radford et al. 2018) and the default of transformers |
| step | 8,192 tokens, fewer for a small text | 8 rows of 1,024, the default of transformers; at |
| | | least 200 steps, so that the rate can rise and fall |
| learning rate | a share of a new model's | 5e-5 for GPT-2 124M: transformers has 5e-5, GPT-1 had |
| | (FINE_TUNING_SHARES) | 6.25e-5; models of 0.2M, trained for minutes, learnt most |
| | | with half or all of it: 1, 1/2, 1/4 and 1/8 ended at |
| | | 1.755, 1.761, 1.798 and 1.865 (README's demo, 2,500 |
| | | steps, then 3 epochs of 200 kB of TinyShakespeare) |
| dropout | 0.1, or 0 if the text has more tokens | GPT-2's config.json has 0.1; a model that |
| | than the model has parameters | is small for its text does not overfit |
| warm-up, decay, betas | as for a new model | AdamW's moments begin at 0 here too |
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from cupygpt.config import GPTConfig
from cupygpt.flags.config import LENGTHS, TrainConfig

CPU_MINUTES = 2.0
"""Length of a new model's run on a CPU where no flag says it."""

TOKENS_PER_PARAMETER = 20
"""More tokens teach a model of that size little (arXiv:2203.15556)."""

MOST_EPOCHS = 25
"""After so many passes over a text a model with dropout is near its best, and then gets worse."""

NUM_VALIDATIONS, NUM_SAMPLES = 10, 5

RATE_OF_ROOT = 4.5
"""The peak learning rate is this over the root of the number of parameters."""

LARGE_STEP_TOKENS = 2**15
"""From such steps on gradients are so exact that AdamW's second moment may forget sooner."""

FINE_TUNING_SHARES = ((10**6, 1 / 2), (3 * 10**7, 1 / 4), (math.inf, 1 / 8))
"""For models of up to so many parameters; the middle one is a guess between the others."""
FINE_TUNING_EPOCHS = 3
FINE_TUNING_STEP_TOKENS, FINE_TUNING_STEPS = 2**13, 200
"""See the table of this module."""

SMALL_VOCAB = 1024
"""Up to this vocabulary a token is a letter or a byte."""


@dataclass(frozen=True)
class Size:
    """A shape for a new model, and its batch: T tokens a row, `step_tokens` a step."""

    L: int
    NH: int
    C: int
    T: int
    step_tokens: int


CPU_SIZES = (
    (3.0, Size(L=4, NH=4, C=64, T=64, step_tokens=1024)),
    (10.0, Size(L=4, NH=4, C=96, T=64, step_tokens=1024)),
    (30.0, Size(L=4, NH=4, C=128, T=128, step_tokens=1024)),
    (math.inf, Size(L=6, NH=6, C=192, T=128, step_tokens=2048)),
)
"""Up to so many minutes. Two cores; with a large vocabulary the head takes most of the time."""

GPU_LETTER_SIZES = (
    (2**25, Size(L=6, NH=6, C=384, T=256, step_tokens=2**14)),
    (math.inf, Size(L=12, NH=12, C=768, T=512, step_tokens=2**15)),
)
"""Up to so many training tokens, for small vocabularies."""

GPU_WORD_SIZES = (
    (2**21, Size(L=4, NH=4, C=128, T=256, step_tokens=2**13)),
    (2**27, Size(L=6, NH=6, C=384, T=512, step_tokens=2**15)),
    (math.inf, Size(L=12, NH=12, C=768, T=1024, step_tokens=2**17)),
)
"""Up to so many training tokens, for vocabularies like GPT-2's."""


def size_for(*, on_gpu: bool, minutes: float | None, tokens: int, V: int) -> Size:
    """The size of a new model: by the time that a CPU has for it, or by a GPU's text."""
    if not on_gpu:
        return _row(CPU_SIZES, CPU_MINUTES if minutes is None else minutes)
    return _row(GPU_LETTER_SIZES if V <= SMALL_VOCAB else GPU_WORD_SIZES, tokens)


def _row(table: tuple[tuple[float, Size], ...], key: float) -> Size:
    return next(size for most, size in table if key <= most)


def file_settings(config: TrainConfig) -> TrainConfig:
    """llm.c's defaults, for a run whose weights come from a model file."""
    return _fill(
        config,
        {item.name: item.metadata["from_file"] for item in fields(config)},
    )


def batch_settings(config: TrainConfig, *, T: int, step_tokens: int, world: int) -> TrainConfig:
    """Rows of T tokens, so many that all ranks together make one step of `step_tokens`."""
    B = config.batch_size or max(1, (config.total_batch or step_tokens) // (T * world))
    return _fill(config, {"seq_len": T, "batch_size": B})


def fine_tuning_step_tokens(tokens: int) -> int:
    """The tokens of a step of fine-tuning on a text of so many; a power of two."""
    most = max(1, FINE_TUNING_EPOCHS * tokens // FINE_TUNING_STEPS)
    return min(FINE_TUNING_STEP_TOKENS, 1 << most.bit_length() - 1)


def length_settings(
    config: TrainConfig, model: GPTConfig, tokens: int, *, on_gpu: bool, fine_tunes: bool = False
) -> tuple[TrainConfig, str]:
    """How long a model is trained, and why; `tokens` are those of its training data."""
    if any(getattr(config, name) is not None for name in LENGTHS):
        return config, ""
    if fine_tunes:
        return replace(config, epochs=float(FINE_TUNING_EPOCHS)), (
            f"{FINE_TUNING_EPOCHS} epochs, as is usual for fine-tuning (-n, --epochs or --minutes "
            f"change it)"
        )
    if not on_gpu:
        return replace(config, minutes=CPU_MINUTES), (
            f"{CPU_MINUTES:g} minutes, the default for a new model on a CPU (--minutes, -n or "
            f"--epochs change it)"
        )
    enough = TOKENS_PER_PARAMETER * model.num_parameters / tokens
    if enough <= MOST_EPOCHS:
        why = f"{TOKENS_PER_PARAMETER} tokens for each of the model's parameters"
    else:
        why = "a model with dropout learns little more from a text of this size"
    epochs = float(f"{min(enough, MOST_EPOCHS):.3g}")
    return replace(config, epochs=epochs), f"{epochs:g} epochs: {why} (-n or --minutes change it)"


def settle(
    config: TrainConfig,
    model: GPTConfig,
    *,
    steps: int,
    step_tokens: int,
    train_tokens: int,
    val_tokens: int,
    fine_tunes: bool = False,
) -> TrainConfig:
    """The config with all chosen that depends on the number of steps.

    `step_tokens` are those of one step, `val_tokens` those of one validation, 0 without.
    """
    chosen = _learning_settings(config, model, steps, step_tokens, train_tokens)
    if fine_tunes:
        chosen |= fine_tuning_settings(model, train_tokens)
    config = _fill(config, chosen)
    return _report_settings(config, model, steps, step_tokens, val_tokens)


def _learning_settings(
    config: TrainConfig, model: GPTConfig, steps: int, step_tokens: int, tokens: int
) -> dict[str, Any]:
    """Learning rate, warm-up, decay and dropout of a new model that takes `steps` steps."""
    P, epochs = model.num_parameters, steps * step_tokens / tokens
    chosen = {
        "learning_rate": _rounded(RATE_OF_ROOT / math.sqrt(P)),
        "warmup": min(steps // 10, 1000),
        "final_fraction": 0.05,
        "weight_decay": 0.1,
        "beta2": 0.99 if step_tokens < LARGE_STEP_TOKENS else 0.95,
        "dropout": _dropout(epochs, P / tokens),
    }
    if config.schedule == "constant":
        chosen |= {"warmup": 0, "final_fraction": 1.0}
    return chosen


def fine_tuning_settings(model: GPTConfig, tokens: int) -> dict[str, float]:
    """In what fine-tuning on so many tokens differs from training a new model."""
    P = model.num_parameters
    return {
        "learning_rate": _rounded(fine_tuning_share(P) * RATE_OF_ROOT / math.sqrt(P)),
        "dropout": 0.1 if tokens <= P else 0.0,
    }


def fine_tuning_share(P: int) -> float:
    """The share of a new model's learning rate with which one of P parameters is fine-tuned."""
    return next(share for most, share in FINE_TUNING_SHARES if most >= P)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def _dropout(epochs: float, parameters_per_token: float) -> float:
    """More dropout for a large model that reads a small text again and again."""
    repetition = parameters_per_token * epochs
    return 0.0 if repetition < 50 else 0.1 if repetition < 100 else 0.2


def _report_settings(
    config: TrainConfig, model: GPTConfig, steps: int, step_tokens: int, val_tokens: int
) -> TrainConfig:
    """When to validate and sample. A validation of so many tokens costs a third of training."""
    share = val_tokens / 3 / (steps * step_tokens)
    validations = max(2, min(NUM_VALIDATIONS, int(0.05 / share))) if val_tokens else 1
    return _fill(
        config,
        {
            "val_every": max(1, _round(steps / validations)),
            "sample_every": max(1, _round(steps / NUM_SAMPLES)),
            "sample_length": 192 if model.V <= SMALL_VOCAB else 64,
        },
    )


def _round(value: float) -> int:
    """Up to a number with two leading digits, so that a log is easy to read."""
    unit: int = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return math.ceil(value / unit) * unit


def _fill(config: TrainConfig, chosen: dict[str, Any]) -> TrainConfig:
    """The config with the `chosen` values where it is open."""
    open_ = {
        name: value
        for name, value in chosen.items()
        if value is not None and getattr(config, name) is None
    }
    return replace(config, **open_)
