"""The flags of `python -m cupygpt.train`, one field each.

A field holds the flag's names (llm.c's short ones are kept), type, default, the demo's default,
range, help text, its label on the console, and whether a resumed run may change it. Three rules
need more than one flag: the demo's warm-up (`new_run_config`), the length of a resumed run
(resume.py), and what `-e` may name (plan.py). loop.py hands the values to the trainer.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from cupygpt.device.precision import PRECISIONS
from cupygpt.errors import ConfigError
from cupygpt.training.flag_field import (
    AT_LEAST_1,
    AT_LEAST_1_OR_ALL,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    UP_TO_1,
    flag,
    switch,
)
from cupygpt.training.schedule import SCHEDULES

NEWEST_RUN = "newest"
"""What `--resume` without a value stands for."""


@dataclass(frozen=True)
class TrainConfig:
    """What a run is asked to do. None means: not given; plan.py chooses or leaves it out."""

    model: str | None = flag(
        "-e",
        "--model",
        help="model file (.bin) or descriptor: small, d12, gpt3:c768 ... (default: small)",
    )
    train_data: str | None = flag(
        "-i",
        "--train-data",
        help="token files to train on, a path or a quoted pattern (default: the demo's text)",
    )
    val_data: str | None = flag(
        "-j",
        "--val-data",
        help="token files to validate on, a path or a quoted pattern (default: none)",
    )
    out: str | None = flag("-o", "--out", help="run folder (default: runs/<date>-<time>)")
    batch_size: int = flag(
        "-b",
        "--batch-size",
        type=int,
        default=4,
        demo=16,
        range=AT_LEAST_1,
        help="rows per micro-batch, B",
    )
    seq_len: int | None = flag(
        "-t",
        "--seq-len",
        type=int,
        demo=64,
        range=AT_LEAST_1,
        fixed=True,
        help="tokens per row, T (default: the model's context)",
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
        default=3e-4,
        demo=5e-3,
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
        default=0,
        demo=50,
        range=NOT_NEGATIVE,
        fixed=True,
        help="warm-up steps",
    )
    final_fraction: float = flag(
        "-q",
        "--final-fraction",
        type=float,
        default=1.0,
        demo=0.05,
        range=UP_TO_1,
        fixed=True,
        help="last learning rate as a fraction of the peak, 1 = no decay",
    )
    weight_decay: float = flag(
        "-c",
        "--weight-decay",
        type=float,
        default=0.0,
        demo=0.1,
        range=NOT_NEGATIVE,
        fixed=True,
        label="weight decay",
        help="weight decay of the matrices",
    )
    steps: int | None = flag(
        "-n",
        "-x",
        "--steps",
        type=int,
        demo=1000,
        range=AT_LEAST_1,
        help="optimizer steps (default: one epoch; llm.c's -n is --checkpoint-every here)",
    )
    epochs: float | None = flag(
        "--epochs", type=float, range=POSITIVE, help="length of the run in epochs, instead of -n"
    )
    val_every: int = flag(
        "-v",
        "--val-every",
        type=int,
        default=20,
        demo=200,
        range=NOT_NEGATIVE,
        help="validate every so many steps, 0 = never",
    )
    val_batches: int = flag(
        "-m",
        "--val-batches",
        type=int,
        default=20,
        range=AT_LEAST_1_OR_ALL,
        help="validation batches, -1 = all",
    )
    sample_every: int = flag(
        "-s",
        "--sample-every",
        type=int,
        default=20,
        demo=200,
        range=NOT_NEGATIVE,
        help="print a sample every so many steps, 0 = never",
    )
    sample_length: int = flag(
        "-g",
        "--sample-length",
        type=int,
        default=64,
        demo=192,
        range=AT_LEAST_1,
        help="tokens of a sample",
    )
    resume: str | None = flag(
        "-y",
        "--resume",
        nargs="?",
        const=NEWEST_RUN,
        metavar="RUN",
        help="continue the run in this folder; without a value: in the -o folder, or else the "
        "newest run in runs/",
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
    recompute: int = flag(
        "-r",
        "--recompute",
        default=0,
        type=int,
        choices=(0, 1, 2),
        help="save memory: 1 recomputes GELU in backward, 2 also the LayerNorms",
    )
    zero_stage: int = flag(
        "-z",
        "--zero-stage",
        default=0,
        type=int,
        choices=(0, 1),
        help="1 shares the optimizer's state out among the GPUs (ZeRO-1)",
    )
    master_weights: int = flag(
        "-w",
        "--master-weights",
        default=1,
        type=int,
        choices=(0, 1),
        fixed=True,
        help="0 trains bf16 weights without a float32 copy",
    )
    precision: str = flag(
        "--precision",
        default="auto",
        choices=("auto", *PRECISIONS),
        fixed=True,
        help="number format of the matrix products",
    )
    device: str = flag("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    gpus: int | None = flag(
        "--gpus",
        type=int,
        range=AT_LEAST_1,
        help="train on so many GPUs of this machine; mpirun, srun and torchrun do the same, on one "
        "machine or several",
    )
    rank_timeout: float = flag(
        "--rank-timeout",
        default=120.0,
        type=float,
        range=POSITIVE,
        help="seconds to wait at startup for all ranks to connect",
    )
    seed: int = flag(
        "--seed",
        default=42,
        type=int,
        range=SEED,
        fixed=True,
        help="random seed for weights, data order, dropout and sampling",
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
        default=0.95,
        demo=0.99,
        type=float,
        range=BELOW_1,
        fixed=True,
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
        default=0.0,
        type=float,
        range=BELOW_1,
        fixed=True,
        label="dropout",
        help="dropout of embedding, attention and MLP",
    )
    no_shuffle: bool = switch(
        "--no-shuffle",
        fixed=True,
        help="read the data in order, as llm.c does without shuffling",
    )
    checkpoint_every: int = flag(
        "--checkpoint-every",
        type=int,
        default=200,
        demo=500,
        range=NOT_NEGATIVE,
        help="save every so many steps, and at each new best validation loss; 0 = only then and at "
        "the end",
    )
    keep: int = flag(
        "--keep",
        default=2,
        type=int,
        range=NOT_NEGATIVE,
        help="newest checkpoints to keep in addition to the best, 0 = all",
    )
    no_graph: bool = switch("--no-graph", help="launch each kernel by itself (to debug)")
    tokenizer: str | None = flag(
        "--tokenizer",
        fixed=True,
        help="gpt2, bytes or a file (default: by the model's vocabulary)",
    )
    log_every: int = flag(
        "--log-every",
        default=10,
        type=int,
        range=AT_LEAST_1,
        help="steps between lines when there is no bar",
    )
    overwrite: bool = switch("--overwrite", help="start again in a used run folder")
    debug: bool = switch("--debug", help="show tracebacks of errors")

    def __post_init__(self) -> None:
        for item in fields(self):
            value, allowed = getattr(self, item.name), item.metadata["range"]
            if value is not None and allowed is not None and not allowed.holds(value):
                raise ConfigError(f"{flags_of(item.name)} is {value}, but must be {allowed.words}.")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("-n and --epochs both set the length of the run; pass one of them.")

    def as_dict(self) -> dict[str, Any]:
        """All fields, for the run's record."""
        return asdict(self)

    @property
    def is_demo(self) -> bool:
        """Whether the run trains on the demo's text, because it was given no other."""
        return self.train_data is None


FIXED = tuple(item.name for item in fields(TrainConfig) if item.metadata["fixed"])
"""The flags that a resumed run cannot change."""


def new_run_config(given: Mapping[str, Any]) -> TrainConfig:
    """The settings of a new run: the given flags, and the demo's defaults if it is the demo."""
    config = TrainConfig(**given)
    if not config.is_demo:
        return config
    demo = {
        item.name: item.metadata["demo"]
        for item in fields(TrainConfig)
        if item.metadata["demo"] is not None
    }
    if config.epochs is not None:
        del demo["steps"]
    values = {**demo, **given}
    if "warmup" not in given and values.get("steps"):
        # A short demo would spend most of its steps on the warm-up.
        values["warmup"] = min(values["warmup"], values["steps"] // 10)
    return TrainConfig(**values)


def flags_of(name: str) -> str:
    """The flags of a field as a user writes them: `-b/--batch-size`."""
    names = next(item.metadata["names"] for item in fields(TrainConfig) if item.name == name)
    return "/".join(names)


def labelled_values(config: TrainConfig) -> list[str]:
    """The fields that have a label, as the console shows them: `weight decay 0.1`."""
    return [
        f"{item.metadata['label']} {getattr(config, item.name):g}"
        for item in fields(config)
        if item.metadata["label"]
    ]


def parse_given(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The flags that were given, by field name; the others are absent."""
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.train",
        description="Train a GPT. Without arguments: a demo of one to two minutes.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for item in fields(TrainConfig):
        text = item.metadata["help"].replace("%", "%%")
        if item.default is not None and item.default is not False:
            shown = f"{item.default:g}" if isinstance(item.default, float) else item.default
            text += f" (default: {shown})"
        parser.add_argument(
            *item.metadata["names"], dest=item.name, help=text, **item.metadata["argument"]
        )
    return vars(parser.parse_args(arguments))
