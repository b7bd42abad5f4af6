"""python -m cupygpt.evaluate: how good a model is, on texts and on questions."""

import argparse
import sys
from collections.abc import Sequence

from cupygpt.cli import run_cli
from cupygpt.console.stream import set_up_streams
from cupygpt.evaluation.request import Request, evaluate
from cupygpt.files import user_path

DESCRIPTION = """\
Measure a model. FILE is one of
  token files    as prepare writes them, or a quoted pattern such as 'val_*.bin'
  text           UTF-8; each file is a document, and begins after an end of text
  questions      llm.c's evaluation file (hellaswag_val.bin), or .jsonl: one object a line, with
                 ctx, context or question; endings or choices; and label
  hellaswag      the file that llm.c's script writes (dev/data/hellaswag/hellaswag_val.bin), or the
                 published jsonl with --source FILE
Without FILE the validation files of the run are read, all of them.

Of a text, the loss (nats per token), perplexity and bits per byte of all its tokens but the first.
It is read in windows of as many tokens as the model was trained on. They do not overlap, so a token
has between one and all tokens of its window before it; --stride lets them overlap.
Of questions, how often the right choice is the likeliest: by sum, per token (llm.c's accuracy), and
per character (the acc_norm of lm-evaluation-harness).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    set_up_streams()
    given = vars(_parser().parse_intermixed_args(arguments))
    debug, as_json = given.pop("debug"), given.pop("json")
    return run_cli(lambda: _print(Request(**given), as_json=as_json), debug=debug)


def _print(request: Request, *, as_json: bool) -> None:
    """Evaluate; the numbers go to stdout, everything else to stderr."""
    report = evaluate(request)
    lines = [report.json()] if as_json else list(report.lines())
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.evaluate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="RUN|model.bin|FOLDER",
        help="run folder (RUN, RUN@newest or RUN@STEP: its best, newest or any checkpoint), model "
        "file, or Hugging Face folder (default: the newest run)",
    )
    add("files", nargs="*", metavar="FILE", help="what to evaluate it on, see above")
    add("--source", type=user_path, metavar="FILE", help="hellaswag: read it from this file")
    add("--by-position", action="store_true", help="also by the tokens before, in the window")
    add("--by-document", action="store_true", help="also of each document")
    add(
        "--split-at-endoftext",
        action="store_true",
        help="in text files <|endoftext|> separates documents",
    )
    add(
        "--window",
        type=int,
        metavar="N",
        help="tokens that are read at once (default: as many as were trained, else all positions)",
    )
    add(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from one window to the next (default: those of a window)",
    )
    add("--questions", type=int, metavar="N", help="only the first N questions of a file")
    add("--tokenizer", help="gpt2, bytes or a file (default: the run's, the data's, or by size)")
    add(
        "--precision",
        default="auto",
        help="auto, fp32, tf32 or bf16 (default: that of the model file, where the device has it)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object with all numbers")
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


if __name__ == "__main__":
    sys.exit(main())
