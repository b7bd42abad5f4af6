"""The flags about validation, samples, checkpoints and messages."""

from dataclasses import dataclass

from cupygpt.flags.field import AT_LEAST_1, AT_LEAST_1_OR_ALL, NOT_NEGATIVE, flag, switch


@dataclass(frozen=True)
class ReportFlags:
    """What is shown and saved, and when."""

    val_every: int = flag(
        "-v",
        "--val-every",
        type=int,
        range=NOT_NEGATIVE,
        help="validate every so many steps, 0 = never (default: about ten times a run, fewer where "
        "that would cost over 5 % of the time)",
    )
    val_batches: int | None = flag(
        "-m",
        "--val-batches",
        type=int,
        fixed=True,
        range=AT_LEAST_1_OR_ALL,
        help="validation rows, in batches of -b rows, -1 = all (default: all, but at most 5 % of "
        "what the run trains on, 8,192 to 131,072 tokens, evenly spread)",
    )
    hellaswag: str | None = flag(
        "--hellaswag",
        metavar="FILE",
        help="questions to answer at each validation after step 0 and at the end: llm.c's file "
        "(hellaswag_val.bin), or .jsonl as python -m cupygpt.evaluate reads it",
    )
    sample_every: int = flag(
        "-s",
        "--sample-every",
        type=int,
        range=NOT_NEGATIVE,
        help="print a sample every so many steps, 0 = never (default: about five a run)",
    )
    sample_length: int = flag(
        "-g",
        "--sample-length",
        type=int,
        range=AT_LEAST_1,
        help="tokens of a sample (default: 64, of bytes 192)",
    )
    checkpoint_every: int | None = flag(
        "--checkpoint-every",
        type=int,
        range=NOT_NEGATIVE,
        help="save every so many steps, and at each new best validation loss; 0 = only then and at "
        "the end (default: as often as saving takes 2 % of the time)",
    )
    keep: int = flag(
        "-nk",
        "--keep",
        default=2,
        type=int,
        range=NOT_NEGATIVE,
        help="newest checkpoints to keep in addition to the best, 0 = all",
    )
    keep_every: int = flag(
        "-nm",
        "--keep-every",
        default=0,
        type=int,
        range=NOT_NEGATIVE,
        help="never delete checkpoints of steps that are a multiple of this, 0 = none",
    )
    log_every: int = flag(
        "--log-every",
        default=10,
        type=int,
        range=AT_LEAST_1,
        help="steps between lines when there is no bar",
    )
    no_bar: bool = switch("--no-bar", help="print lines on a terminal too, as in a file")
    debug: bool = switch("--debug", help="show tracebacks of errors")
