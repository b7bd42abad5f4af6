"""The flags about the model, the data and the run folder."""

from dataclasses import dataclass

from cupygpt.files import user_text
from cupygpt.flags.field import AT_LEAST_1, SEED, flag, switch

NEWEST_RUN = "newest"
"""What `--resume` without a value stands for."""


@dataclass(frozen=True)
class ModelAndDataFlags:
    """Model and data."""

    model: str | None = flag(
        "-e",
        "--model",
        type=user_text,
        help="weights to begin with: a run folder (RUN, RUN@newest or RUN@STEP), a Hugging Face "
        "folder or a model file (.bin); or the size of a new model: small, d12, gpt3:c768 ..., or "
        "any shape as L6:H6:C384, layers, heads and channels (default: a new model, by the time "
        "that a CPU has, by the text on a GPU). A run, a Hugging Face folder, and a .bin that "
        "convert made from one are fine-tuned; any other (a plain .bin) is trained with llm.c's "
        "defaults",
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
    out: str | None = flag(
        "-o", "--out", type=user_text, help="run folder (default: runs/<date>-<time>)"
    )
    tokenizer: str | None = flag(
        "--tokenizer",
        help="gpt2, bytes or a file (default: that of the data, of -e, or by the vocabulary)",
    )
    seq_len: int | None = flag(
        "-t",
        "--seq-len",
        type=int,
        range=AT_LEAST_1,
        fixed=True,
        help="tokens per row, T: the context of a new model (default: by its size; of a trained "
        "model the positions that were trained; of a plain .bin all)",
    )
    no_shuffle: bool = switch(
        "--no-shuffle",
        fixed=True,
        help="read the data in order, as llm.c does without shuffling",
    )
    seed: int = flag(
        "--seed",
        default=42,
        type=int,
        range=SEED,
        fixed=True,
        help="random seed for weights, data order, dropout and sampling",
    )
    resume: str | None = flag(
        "-y",
        "--resume",
        type=user_text,
        nargs="?",
        const=NEWEST_RUN,
        metavar="RUN",
        help="continue the run in this folder; without a value: in the -o folder, or else the "
        "newest run in runs/; llm.c's -y 1: if there is one, else start",
    )
    overwrite: bool = switch("--overwrite", help="start again in a used run folder")
