"""Text to token files: python -m cupygpt.prepare NAME or FILE..."""

import argparse
import glob
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cupygpt.cli import run_cli
from cupygpt.console.paste import shell_command
from cupygpt.console.stop_signal import ending_cleanly
from cupygpt.console.stream import set_up_streams
from cupygpt.files import user_path
from cupygpt.texts.hold_out import METHODS
from cupygpt.texts.prepare_files import prepare_files
from cupygpt.texts.reading.documents import SEPARATOR
from cupygpt.texts.request import ERRORS, SHARD_TOKENS, VAL_FRACTION, Request
from cupygpt.texts.writing.encode_blocks import MOST_WORKERS

DESCRIPTION = """\
Turn text into token files for cupygpt.train, in llm.c's format (2 bytes an id, or 4 for a
vocabulary above 65,536).

WHAT is one of
  tinyshakespeare   Shakespeare, 1.1 MB, downloaded or from --source FILE; split and separators
                    are llm.c's: the first 32,768 tokens are for validation
  python-docs       the text of Python's own documentation and docstrings, 2.1 MB, no network
                    needed; every 20th document is for validation
  fineweb           web text in GPT-2's tokens, as published: files of 10**8 tokens, 191 MiB each;
                    -n 10 takes ten of 103, and one for validation
  fineweb-edu       the same of educational pages, 99 files
  tinystories       stories in simple words (TinyStoriesV2-GPT4), 2.2 GB of text, with the
                    published validation file
  openwebtext       web text as GPT-2 read it, 80 parquet files of about 300 MB (-n takes fewer)
  FILE...           your own text: files, quoted patterns such as 'books/**/*.txt', folders (their
                    .txt, .jsonl and .parquet files), or - for standard input

Files may be
  text              any ending but those below: each file is one document. UTF-8, or what a byte
                    order mark says; Windows line ends become line feeds
  .jsonl, .ndjson   each line is a JSON record, and the text in its --field one document; .json
                    files are read so too if --field is given
  .parquet          each row is one document (pip install 'cupygpt[parquet]')
  .gz, .zst         text or jsonl, packed (zstd before Python 3.14: pip install 'cupygpt[zstd]')

A tenth of the text is for validation: of many documents whole ones, chosen by a hash of their
content, so that a larger text keeps the split; of few documents the last tenth of each. Many are
100 (so that ten are held out), if none of them is longer than half of the validation part.

The web data sets come from huggingface.co, from another server with the same paths (--mirror URL or
the variable HF_ENDPOINT), or from files that are here (--source FOLDER).

A run that was stopped goes on when the same command is given again.

It writes NAME_train.bin and NAME_val.bin, and beside each file a record of its tokenizer and its
texts (NAME_train.bin.json), which cupygpt.train reads. A tokenizer from a file is copied to
NAME_tokenizer.tiktoken. Files of an earlier run under the same name are replaced, when all new ones
are complete.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; argparse exits with code 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.prepare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="+", metavar="WHAT", help="a data set by name, or files, folders, or -")
    add(
        "-o",
        "--output",
        type=user_path,
        default=Path(),
        metavar="DIR",
        help="folder (default: here)",
    )
    add("--name", help="first part of the file names (default: from WHAT, or 'text')")
    add(
        "--tokenizer",
        metavar="SPEC",
        help="gpt2, bytes, or a file: .tiktoken or tokenizer.json; bpe:4096 learns a vocabulary of "
        "4,096 ids (256 bytes, 3,839 merges and end of text) from the text for training and saves "
        "it as NAME.tiktoken, bpe:auto one that suits the size of the text (default: gpt2; bytes "
        "for python-docs)",
    )
    _add_flags_of_published(parser)
    _add_flags_of_texts(parser)
    add(
        "--headerless",
        action="store_true",
        help="the files are nanoGPT's: token ids without a header, made with --tokenizer; "
        "those named val* are for validation",
    )
    add(
        "--shard-tokens",
        type=int,
        default=SHARD_TOKENS,
        metavar="N",
        help="tokens per training file; a longer text becomes NAME_train_000001.bin, "
        "NAME_train_000002.bin ... (default: 10**8)",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help=f"threads that encode, at most {MOST_WORKERS} (default: one for each core); the files "
        "do not depend on it",
    )
    add("--debug", action="store_true", help="show the traceback of errors")
    return parser.parse_args(argv)


def _add_flags_of_published(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-n",
        "--files",
        type=int,
        metavar="N",
        help="fineweb, fineweb-edu, openwebtext: so many of the published training files (default: "
        "10, openwebtext all)",
    )
    add(
        "--source",
        type=user_path,
        metavar="PATH",
        help="take the published files from this folder, or tinyshakespeare from this file, and "
        "download nothing",
    )
    add("--mirror", metavar="URL", help="download from this server, which has the same paths")


def _add_flags_of_texts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--val",
        action="append",
        default=[],
        metavar="FILE",
        help="text files: this file or pattern is for validation, the others for training; may be "
        "given several times",
    )
    add(
        "--val-fraction",
        type=float,
        metavar="X",
        help=f"text files: share for validation, 0 for none (default: {VAL_FRACTION})",
    )
    add(
        "--hold-out",
        choices=METHODS,
        help="text files: hold out whole documents, or the end of each (default: auto)",
    )
    add(
        "--field",
        metavar="NAME",
        help="the field of records that holds the text, meta.text for one inside another "
        "(default: found)",
    )
    add(
        "--errors",
        choices=ERRORS,
        help="bytes that are no text end the run, or become U+FFFD (default: strict)",
    )
    add("--dedup", action="store_true", help="take documents that are exactly equal only once")
    add(
        "--split-at-endoftext",
        action="store_true",
        help=f"text files: the text {SEPARATOR} separates documents",
    )


def prepare(args: argparse.Namespace) -> None:
    """Write the token files that `args` ask for and say what they are."""
    request = Request(**{name: value for name, value in vars(args).items() if name != "debug"})
    with ending_cleanly():
        made = prepare_files(request, note=lambda text: _say(f"note: {text}"))
    for path in made.removed:
        _say(f"removed {path} (of an earlier run)")
    for path in made.train_paths + made.val_paths:
        _say(f"wrote {path}")
    tokenizer = made.tokenizer
    _say(
        f"{made.train_tokens:,} training and {made.val_tokens:,} validation tokens, "
        f"tokenizer {tokenizer.name} ({tokenizer.vocab_size:,} ids)"
    )
    _say("next:")
    _say("  " + _next_command(made.train_paths, made.val_paths))


def _next_command(train: Sequence[Path], val: Sequence[Path]) -> str:
    pattern = str(train[0])
    if len(train) > 1:
        stem = re.sub(r"_\d{6}\.bin$", "", train[0].name)
        pattern = str(train[0].with_name(glob.escape(stem) + "_*.bin"))
    command = ["python", "-m", "cupygpt.train", "-i", pattern]
    command += [word for path in val for word in ("-j", str(path))]
    return shell_command(command)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """The command `cupygpt-prepare`; returns the exit code."""
    set_up_streams()
    args = parse_args(argv)
    return run_cli(lambda: prepare(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
