"""Text to token files: python -m cupygpt.prepare NAME or FILE..."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cupygpt.cli import run_cli
from cupygpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cupygpt.data.token_files import Tokens
    from cupygpt.data.tokenizer import Tokenizer

TINYSHAKESPEARE = "tinyshakespeare"
PYTHON_DOCS = "python-docs"
PREFIXES = {TINYSHAKESPEARE: "tiny_shakespeare", PYTHON_DOCS: "python_docs"}
VAL_FRACTION = 0.05

DESCRIPTION = """\
Turn text into token files for cupygpt.train, in llm.c's format (uint16).

WHAT is one of
  tinyshakespeare   Shakespeare, 1.1 MB, downloaded or from --source FILE; split and separators
                    are llm.c's: the first 32,768 tokens are for validation
  python-docs       the text of Python's own documentation and docstrings, 2.1 MB, no network
                    needed; every 20th document is for validation
  FILE...           your own UTF-8 text: files or quoted patterns such as 'books/*.txt'. Each
                    file is one document; the last 5 % of each are for validation

Writes NAME_train.bin and NAME_val.bin. Files of an earlier run under the same name are replaced.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; argparse exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.prepare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="+", metavar="WHAT", help="tinyshakespeare, python-docs, or text files")
    add("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder (default: here)")
    add("--name", help="first part of the file names (default: from WHAT, or 'text')")
    add(
        "--tokenizer",
        metavar="SPEC",
        help="gpt2, bytes, or a .tiktoken file (default: gpt2; bytes for python-docs)",
    )
    add("--source", type=Path, metavar="FILE", help="tinyshakespeare: the text, not downloaded")
    add(
        "--val-fraction",
        type=float,
        metavar="X",
        help=f"text files: share of each kept for validation, 0 for none (default {VAL_FRACTION})",
    )
    add(
        "--shard-tokens",
        type=int,
        default=10**8,
        metavar="N",
        help="tokens per training file; more go to NAME_train_000001.bin and on (default 10**8)",
    )
    add("--debug", action="store_true", help="show the traceback of errors")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> None:
    """Write the token files that `args` ask for and say what they are."""
    _check(args)
    from cupygpt.data.shard_writer import ShardSeries, remove_stale
    from cupygpt.data.tokenizer import load_tokenizer

    [corpus] = args.what if args.what[0] in PREFIXES else [None]
    default_spec = "bytes" if corpus == PYTHON_DOCS else "gpt2"
    tokenizer = load_tokenizer(args.tokenizer or default_spec)
    parts = _corpus_parts(args, corpus, tokenizer) if corpus else _file_parts(args, tokenizer)
    name = args.name or (PREFIXES[corpus] if corpus else _default_name(args.what))
    _make_folder(args.output)
    with (
        ShardSeries(args.output, f"{name}_train", args.shard_tokens) as train,
        ShardSeries(args.output, f"{name}_val", sys.maxsize) as val,
    ):
        for train_tokens, val_tokens in parts:
            train.append(train_tokens)
            val.append(val_tokens)
        _check_enough(train.num_tokens, val.num_tokens, wants_val=args.val_fraction != 0)
    removed = remove_stale(args.output, name, train.paths + val.paths)
    for path in removed:
        _say(f"removed {path} (of an earlier run)")
    for series in (train, val):
        for path in series.paths:
            _say(f"wrote {path}")
    _say(
        f"{train.num_tokens:,} training and {val.num_tokens:,} validation tokens, "
        f"tokenizer {tokenizer.name} ({tokenizer.vocab_size:,} ids)"
    )
    _say("next:")
    _say("  " + _next_command(train.paths, val.paths, tokenizer.name))


def _check(args: argparse.Namespace) -> None:
    named = [what for what in args.what if what in PREFIXES]
    if named and len(args.what) > 1:
        raise ConfigError(
            f"{named[0]} is a built-in text and goes alone; got {' '.join(args.what)}. "
            f"If you mean a file of that name, write ./{named[0]}."
        )
    if args.source and named != [TINYSHAKESPEARE]:
        raise ConfigError(
            "--source names the text of tinyshakespeare. For your own text give the files "
            "themselves: python -m cupygpt.prepare FILE"
        )
    if args.val_fraction is not None and named:
        raise ConfigError(f"--val-fraction is for text files; {named[0]} has a fixed split.")
    if args.val_fraction is not None and not 0 <= args.val_fraction < 1:
        raise ConfigError(f"--val-fraction {args.val_fraction}: must be at least 0 and below 1.")
    if not 2 <= args.shard_tokens < 2**31:
        raise ConfigError(f"--shard-tokens {args.shard_tokens}: must be from 2 to 2**31 - 1.")
    if args.name is not None and not re.fullmatch(r"[^/\\:*?\"<>|\0]+", args.name):
        raise ConfigError(f"--name {args.name!r}: must be part of a file name. Use -o for folders.")


def _corpus_parts(
    args: argparse.Namespace, corpus: str, tokenizer: "Tokenizer"
) -> Iterator[tuple["Tokens", "Tokens"]]:
    from cupygpt.data import corpora
    from cupygpt.data.python_docs import python_docs_text

    if corpus == PYTHON_DOCS:
        docs = python_docs_text()
        for note in docs.notes:
            _say(f"note: {note}")
        yield corpora.python_docs_tokens(docs, tokenizer)
        return
    tokens = corpora.tinyshakespeare_tokens(corpora.tinyshakespeare_text(args.source), tokenizer)
    cut = corpora.SHAKESPEARE_VAL_TOKENS
    if len(tokens) < cut + 2:
        raise DataError(
            f"{args.source}: {len(tokens):,} tokens, of which the first {cut:,} are for "
            f"validation; nothing is left to train on. Is this the TinyShakespeare text? For "
            f"other text: python -m cupygpt.prepare {args.source}"
        )
    yield tokens[cut:], tokens[:cut]


def _file_parts(
    args: argparse.Namespace, tokenizer: "Tokenizer"
) -> Iterator[tuple["Tokens", "Tokens"]]:
    import numpy as np

    from cupygpt.data.paths import matching_files
    from cupygpt.data.shard_writer import split_off_end
    from cupygpt.data.text_files import read_text

    hint = "Check the path. Built-in texts: tinyshakespeare, python-docs."
    paths = [
        path
        for what in args.what
        for path in matching_files(what, kind="text files", example="*.txt", hint=hint)
    ]
    fraction = VAL_FRACTION if args.val_fraction is None else args.val_fraction
    eot = np.array([] if tokenizer.eot is None else [tokenizer.eot], np.uint16)
    owed = 0.0
    for path in paths:
        tokens = np.concatenate([tokenizer.encode(piece) for piece in read_text(path)])
        train, val, owed = split_off_end(tokens, owed + fraction * tokens.size)
        yield (
            np.concatenate([eot, train]) if train.size else train,
            np.concatenate([eot, val]) if val.size else val,
        )


def _default_name(what: Sequence[str]) -> str:
    stem = Path(what[0]).stem if len(what) == 1 else ""
    return stem if re.fullmatch(r"[\w.-]+", stem) else "text"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot hold the output ({error.strerror or error}). "
            f"Choose another folder with -o."
        ) from error


def _check_enough(train: int, val: int, *, wants_val: bool) -> None:
    if train < 2 or (wants_val and val < 2):
        raise DataError(
            f"the text gives {train:,} training and {val:,} validation tokens; each needs at "
            f"least 2. Give more text, or change --val-fraction (0: no validation file)."
        )


def _next_command(train: Sequence[Path], val: Sequence[Path], tokenizer: str) -> str:
    pattern = str(train[0])
    if len(train) > 1:
        pattern = re.sub(r"_\d{6}\.bin$", "_*.bin", pattern)
    command = ["python", "-m", "cupygpt.train", "-i", pattern]
    command += [word for path in val for word in ("-j", str(path))]
    if tokenizer != "gpt2":
        command += ["--tokenizer", tokenizer]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command `cupygpt-prepare`; returns the exit code."""
    args = parse_args(argv)
    return run_cli(lambda: prepare(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
