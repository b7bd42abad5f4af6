"""The flags of `python -m cupygpt.train`: one documented field each, llm.c's short names kept."""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from cupygpt.device.precision import PRECISIONS
from cupygpt.errors import ConfigError
from cupygpt.training.schedule import SCHEDULES

NEWEST_RUN = "newest"
_ON, _OFF = 1, 0


def _flag(*flags: str, help: str, default: Any = None, **argument: Any) -> Any:
    """A field with its flags, help text and argparse settings."""
    return field(default=default, metadata={"flags": flags, "help": help, "argument": argument})


DEFAULTS: dict[str, Any] = {
    "batch_size": 4, "learning_rate": 3e-4, "warmup": 0, "final_fraction": 1.0,
    "weight_decay": 0.0, "val_every": 20, "sample_every": 20, "sample_length": 64,
    "checkpoint_every": 200, "beta2": 0.95,
}  # fmt: skip
DEMO: dict[str, Any] = {
    "batch_size": 16, "seq_len": 64, "learning_rate": 5e-3, "warmup": 50, "final_fraction": 0.05,
    "weight_decay": 0.1, "beta2": 0.99, "val_every": 200, "sample_every": 200,
    "sample_length": 192, "checkpoint_every": 500, "steps": 1000,
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """What a run is asked to do. None means: chosen when the data and the model are known."""

    model: str | None = _flag(
        "-e", "--model",
        help="model file (.bin) or descriptor: small, d12, gpt3:c768 ... (default: small)",
    )  # fmt: skip
    train_data: str | None = _flag(
        "-i", "--train-data", help="token files to train on, a path or glob (default: the demo)"
    )
    val_data: str | None = _flag(
        "-j", "--val-data", help="token files to validate on, a path or glob (default: none)"
    )
    out: str | None = _flag("-o", "--out", help="run folder (default: runs/<date>-<time>)")
    batch_size: int | None = _flag(
        "-b", "--batch-size", type=int, help="rows per micro-batch, B (default: 4)"
    )
    seq_len: int | None = _flag(
        "-t", "--seq-len", type=int, help="tokens per row, T (default: the model's context)"
    )
    total_batch: int | None = _flag(
        "-d", "--total-batch", type=int,
        help="tokens per optimizer step, all GPUs together, a multiple of B × T × GPUs "
        "(default: that)",
    )  # fmt: skip
    learning_rate: float | None = _flag(
        "-l", "--learning-rate", type=float, help="peak learning rate (default: 3e-4)"
    )
    schedule: str = _flag(
        "-k", "--schedule", default="cosine", choices=SCHEDULES, help="learning-rate schedule"
    )
    warmup: int | None = _flag("-u", "--warmup", type=int, help="warm-up steps (default: 0)")
    final_fraction: float | None = _flag(
        "-q", "--final-fraction", type=float,
        help="last learning rate as a fraction of the peak (default: 1, no decay)",
    )  # fmt: skip
    weight_decay: float | None = _flag(
        "-c", "--weight-decay", type=float, help="weight decay of the matrices (default: 0)"
    )
    steps: int | None = _flag(
        "-n", "-x", "--steps", type=int,
        help="optimizer steps (default: one epoch; llm.c's -n is --checkpoint-every here)",
    )  # fmt: skip
    epochs: float | None = _flag(
        "--epochs", type=float, help="length of the run in epochs, instead of -n"
    )
    val_every: int | None = _flag(
        "-v", "--val-every", type=int, help="validate every so many steps, 0 = never (default: 20)"
    )
    val_batches: int = _flag(
        "-m", "--val-batches", default=20, type=int, help="validation batches, -1 = all"
    )
    sample_every: int | None = _flag(
        "-s", "--sample-every", type=int,
        help="print a sample every so many steps, 0 = never (default: 20)",
    )  # fmt: skip
    sample_length: int | None = _flag(
        "-g", "--sample-length", type=int, help="tokens of a sample (default: 64)"
    )
    resume: str | None = _flag(
        "-y", "--resume", nargs="?", const=NEWEST_RUN, metavar="RUN",
        help="go on with a run folder; alone: that of -o, else the newest below runs/",
    )  # fmt: skip
    overfit: int = _flag(
        "-a", "--overfit", default=_OFF, type=int, nargs="?", const=_ON, choices=(_OFF, _ON),
        help="train on the first batch only",
    )  # fmt: skip
    recompute: int = _flag(
        "-r", "--recompute", default=0, type=int, choices=(0, 1, 2),
        help="save memory: 1 computes GELU again in backward, 2 also the LayerNorms",
    )  # fmt: skip
    zero_stage: int = _flag(
        "-z", "--zero-stage", default=0, type=int, choices=(0, 1),
        help="1 shares the optimizer's state out among the GPUs (ZeRO-1)",
    )  # fmt: skip
    master_weights: int = _flag(
        "-w", "--master-weights", default=1, type=int, choices=(0, 1),
        help="0 trains bf16 weights without a float32 copy",
    )  # fmt: skip
    precision: str = _flag(
        "--precision", default="auto", choices=("auto", *PRECISIONS),
        help="number format of the products",
    )  # fmt: skip
    device: str = _flag("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    gpus: int | None = _flag(
        "--gpus", type=int,
        help="train on so many GPUs of this machine; mpirun, srun and torchrun do the same, on one "
        "or several",
    )  # fmt: skip
    rank_timeout: float = _flag(
        "--rank-timeout", default=120.0, type=float,
        help="seconds to wait at the start until the processes of all GPUs have come",
    )  # fmt: skip
    seed: int = _flag(
        "--seed", default=42, type=int, help="of weights, data order, dropout and samples"
    )
    beta1: float = _flag("--beta1", default=0.9, type=float, help="AdamW's first-moment decay")
    beta2: float | None = _flag(
        "--beta2", type=float, help="AdamW's second-moment decay (default: 0.95)"
    )
    grad_clip: float = _flag(
        "--grad-clip", default=1.0, type=float, help="largest gradient norm, 0 = no clipping"
    )
    dropout: float = _flag(
        "--dropout", default=0.0, type=float, help="dropout of embedding, attention and MLP"
    )
    no_shuffle: bool = _flag(
        "--no-shuffle", default=False, action="store_true",
        help="read the data in order, as llm.c does without shuffling",
    )  # fmt: skip
    checkpoint_every: int | None = _flag(
        "--checkpoint-every", type=int,
        help="save every so many steps, 0 = only at the end (default: 200)",
    )  # fmt: skip
    keep: int = _flag(
        "--keep", default=2, type=int, help="newest checkpoints kept besides the best, 0 = all"
    )
    no_graph: bool = _flag(
        "--no-graph", default=False, action="store_true",
        help="launch each kernel by itself (to debug)",
    )  # fmt: skip
    tokenizer: str | None = _flag(
        "--tokenizer", help="gpt2, bytes or a file (default: by the model's vocabulary)"
    )
    log_every: int = _flag(
        "--log-every", default=10, type=int, help="steps between lines where there is no bar"
    )
    overwrite: bool = _flag(
        "--overwrite", default=False, action="store_true", help="start anew in a used run folder"
    )
    debug: bool = _flag(
        "--debug", default=False, action="store_true", help="show tracebacks of errors"
    )

    def __post_init__(self) -> None:
        for name in (
            "batch_size", "seq_len", "total_batch", "steps", "sample_length", "log_every", "gpus",
        ):  # fmt: skip
            self._require(name, lambda value: value >= 1, "at least 1")
        for name in ("warmup", "val_every", "sample_every", "checkpoint_every", "keep", "seed"):
            self._require(name, lambda value: value >= 0, "0 or more")
        for name in ("learning_rate", "epochs", "rank_timeout"):
            self._require(name, lambda value: 0 < value < float("inf"), "positive")
        for name in ("weight_decay", "grad_clip"):
            self._require(name, lambda value: 0 <= value < float("inf"), "0 or more")
        for name in ("beta1", "beta2", "dropout"):
            self._require(name, lambda value: 0 <= value < 1, "in [0, 1)")
        self._require("final_fraction", lambda value: 0 <= value <= 1, "in [0, 1]")
        self._require("val_batches", lambda value: value >= 1 or value == -1, "at least 1, or -1")
        self._require("seed", lambda value: value < 2**32, "below 2**32")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("-n and --epochs both set the length of the run; pass one of them.")

    def as_dict(self) -> dict[str, Any]:
        """All fields, for the run's record."""
        return asdict(self)

    def _require(self, name: str, test: Any, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not test(value):
            raise ConfigError(f"{flags_of(name)} is {value}, but must be {wanted}.")


def with_defaults(config: TrainConfig) -> TrainConfig:
    """Fill in what was not given: the demo's values without -i, llm.c's otherwise."""
    is_demo = config.train_data is None
    values = dict(DEMO if is_demo else DEFAULTS)
    if config.epochs is not None:
        values.pop("steps", None)
    given = {name: value for name, value in config.as_dict().items() if value is not None}
    values.update(given)
    if is_demo and "warmup" not in given and values.get("steps"):
        values["warmup"] = min(values["warmup"], values["steps"] // 10)
    return TrainConfig(**values)


def flags_of(name: str) -> str:
    """The flags of a field as a user writes them: `-b/--batch-size`."""
    metadata = next(f.metadata for f in fields(TrainConfig) if f.name == name)
    return "/".join(metadata["flags"])


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
        if item.default not in (None, False, MISSING) and "default" not in text:
            text += f" (default: {item.default})"
        parser.add_argument(
            *item.metadata["flags"], dest=item.name, help=text, **item.metadata["argument"]
        )
    return vars(parser.parse_args(arguments))
