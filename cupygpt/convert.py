"""python -m cupygpt.convert: a model from one format into another."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cupygpt.cli import run_cli
from cupygpt.console.paste import shell_command
from cupygpt.console.stream import say, set_up_streams
from cupygpt.errors import ConfigError
from cupygpt.exchange.company import with_company
from cupygpt.exchange.source import find_weights, load_weights
from cupygpt.exchange.target import PRECISIONS, Format, check_target, format_of, write_target
from cupygpt.files import user_path

DESCRIPTION = """\
Convert a GPT-2 into another format.

SOURCE is one of
  RUN             a run folder: its best weights; RUN@newest or RUN@STEP choose others
  NAME.bin        a model file of this program or llm.c
  FOLDER          a Hugging Face folder: config.json with model.safetensors, or with shards

TARGET is what its name says
  NAME.bin        a model file, which train, sample and llm.c read, with a note of its origin
  NAME.gguf       a file for llama.cpp and Ollama
  FOLDER          a Hugging Face folder, which transformers loads with its tokenizer
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    set_up_streams()
    args = _parser().parse_args(arguments)
    return run_cli(lambda: convert(args), debug=args.debug)


def convert(args: argparse.Namespace) -> None:
    """Read the source, write the target, and say what it is and what to do with it."""
    target: Path = args.target
    check_target(target, args.precision, overwrite=args.overwrite)
    source = find_weights(args.source)
    if target.exists() and target.samefile(source.path):
        raise ConfigError(f"{target}: source and target are the same.")
    for note in source.notes:
        say(f"note: {note}")
    model = load_weights(source)
    for warning in model.warnings:
        say(f"warning: {warning}")
    converted, notes = with_company(source, model, args.tokenizer, target)
    for note in notes:
        say(f"note: {note}")
    precision = args.precision or model.precision
    for path in write_target(target, converted, precision):
        _say(f"wrote {path} ({path.stat().st_size:,} bytes)")
    _say(f"{source.origin}: {model.config.describe()}, {model.precision} -> {precision}")
    _say_how_to_use(target)


def _say_how_to_use(target: Path) -> None:
    """What to do next, as commands."""
    kind = format_of(target)
    if kind is Format.GGUF:
        _say("next:  " + shell_command(["llama-cli", "-m", target]))
    elif kind is Format.HUGGING_FACE:
        _say(f"next, in Python:  AutoModelForCausalLM.from_pretrained({str(target)!r})")
    else:
        _say("next:")
        _say("  " + shell_command(["python", "-m", "cupygpt.sample", target]))
        _say(
            "  " + shell_command(["python", "-m", "cupygpt.train", "-e", target, "-i", "DATA.bin"])
        )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.convert",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the model: see above")
    add("target", metavar="TARGET", type=user_path, help="where to write it: see above")
    add(
        "--precision",
        choices=PRECISIONS,
        help="fp32, bf16, or for GGUF also fp16 (default: the source's own)",
    )
    add("--tokenizer", help="gpt2, bytes or a file (default: the model's, or by the vocabulary)")
    add("--overwrite", action="store_true", help="replace what is there already")
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


if __name__ == "__main__":
    sys.exit(main())
