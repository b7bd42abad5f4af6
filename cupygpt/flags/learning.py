"""The flags that decide how a model learns: batch, rate, length, regularisation."""

from dataclasses import dataclass

from cupygpt.flags.field import (
    AT_LEAST_1,
    AT_LEAST_1_OR_ALL,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_1,
    flag,
)

SCHEDULES = ("cosine", "linear", "constant", "wsd")
"""The learning-rate schedules; planning/schedule.py computes them."""


@dataclass(frozen=True)
class LearningFlags:
    """Learning."""

    steps: int | None = flag(
        "-n",
        "-x",
        "--steps",
        type=int,
        range=AT_LEAST_1_OR_ALL,
        help="optimizer steps, -1 = one epoch as llm.c counts it (default: 3 epochs to fine-tune, "
        "one with a plain .bin, else what --minutes says); beside -x, -n is llm.c's: save every so "
        "many steps",
    )
    epochs: float | None = flag(
        "--epochs", type=float, range=POSITIVE, help="length of the run in epochs, instead of -n"
    )
    minutes: float | None = flag(
        "--minutes",
        type=float,
        range=POSITIVE,
        help="length of the run in minutes, start and end included, instead of -n: the first steps "
        "are timed, and then the number of steps is fixed (default for a new model: 2 on a CPU; on "
        "a GPU the length that suits text and model)",
    )
    extend: int | None = flag(
        "--extend",
        type=int,
        range=AT_LEAST_1,
        help="with --resume: train so many steps beyond the end. In the first tenth of them the "
        "learning rate rises to half of its peak, then it falls again to its last value; a rate "
        "that does not decay stays",
    )
    patience: int | None = flag(
        "--patience",
        type=int,
        range=AT_LEAST_1,
        help="stop when so many validations in a row have not improved",
    )
    batch_size: int = flag(
        "-b",
        "--batch-size",
        type=int,
        from_file=4,
        range=AT_LEAST_1,
        help="rows per micro-batch, B",
    )
    total_batch: int | None = flag(
        "-d",
        "--total-batch",
        type=int,
        range=AT_LEAST_1,
        help="tokens per optimizer step on all GPUs together, a multiple of B × T × GPUs "
        "(default: B × T × GPUs)",
    )
    learning_rate: float = flag(
        "-l",
        "--learning-rate",
        type=float,
        from_file=3e-4,
        range=POSITIVE,
        fixed=True,
        help="peak learning rate",
    )
    schedule: str = flag(
        "-k",
        "--schedule",
        default="cosine",
        choices=SCHEDULES,
        fixed=True,
        help="learning-rate schedule",
    )
    warmup: int = flag(
        "-u",
        "--warmup",
        type=int,
        from_file=0,
        range=NOT_NEGATIVE,
        fixed=True,
        help="warm-up steps",
    )
    final_fraction: float = flag(
        "-q",
        "--final-fraction",
        type=float,
        from_file=1.0,
        range=UP_TO_1,
        fixed=True,
        help="last learning rate as a fraction of the peak, 1 = no decay",
    )
    weight_decay: float = flag(
        "-c",
        "--weight-decay",
        type=float,
        from_file=0.0,
        range=NOT_NEGATIVE,
        fixed=True,
        label="weight decay",
        help="weight decay of the matrices",
    )
    beta1: float = flag(
        "--beta1",
        default=0.9,
        type=float,
        range=BELOW_1,
        fixed=True,
        help="AdamW's first-moment decay",
    )
    beta2: float = flag(
        "--beta2",
        from_file=0.95,
        type=float,
        range=BELOW_1,
        fixed=True,
        label="beta2",
        help="AdamW's second-moment decay",
    )
    grad_clip: float = flag(
        "--grad-clip",
        default=1.0,
        type=float,
        range=NOT_NEGATIVE,
        fixed=True,
        label="clip",
        help="largest gradient norm, 0 = no clipping",
    )
    dropout: float = flag(
        "--dropout",
        from_file=0.0,
        type=float,
        range=BELOW_1,
        fixed=True,
        label="dropout",
        help="dropout of embedding, attention and MLP",
    )
    overfit: int = flag(
        "-a",
        "--overfit",
        default=0,
        type=int,
        nargs="?",
        const=1,
        choices=(0, 1),
        fixed=True,
        help="1 trains on the first batch only",
    )
