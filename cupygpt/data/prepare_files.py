"""From texts to the token files of one data set: a training series and a validation file."""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cupygpt.console.paste import shell_word
from cupygpt.data import corpora
from cupygpt.data.python_docs import python_docs_text
from cupygpt.data.shard_writer import ShardSeries, remove_stale, split_off_end
from cupygpt.data.text_files import read_text
from cupygpt.data.token_files import Tokens, matching_files
from cupygpt.data.token_record import NAMED_SOURCES, Origin, write_token_records
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer
from cupygpt.errors import ConfigError, DataError

TINYSHAKESPEARE = "tinyshakespeare"
PYTHON_DOCS = "python-docs"
FILE_PREFIXES = {TINYSHAKESPEARE: "tiny_shakespeare", PYTHON_DOCS: "python_docs"}
"""The built-in texts, and what their token files are called."""

VAL_FRACTION = 0.05
SHARD_TOKENS = 10**8


@dataclass(frozen=True)
class Request:
    """What to prepare. Raises ConfigError for values that contradict each other or cannot work.

    `what`: one built-in text, or text files and glob patterns. `source` replaces the download of
    tinyshakespeare. `val_fraction` is the share of each text file for validation. None means the
    default.
    """

    what: Sequence[str]
    output: Path = Path()
    name: str | None = None
    tokenizer: str | None = None
    source: Path | None = None
    val_fraction: float | None = None
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        built_in = [what for what in self.what if what in FILE_PREFIXES]
        if built_in and len(self.what) > 1:
            raise ConfigError(
                f"{built_in[0]} is a built-in text and must be the only one; got "
                f"{' '.join(self.what)}. If you mean a file of that name, write ./{built_in[0]}."
            )
        if self.source and built_in != [TINYSHAKESPEARE]:
            raise ConfigError(
                "--source names the text of tinyshakespeare. For your own text give the files "
                "themselves: python -m cupygpt.prepare FILE"
            )
        fraction = self.val_fraction
        if fraction is not None and built_in:
            raise ConfigError(f"--val-fraction is for text files; {built_in[0]} has a fixed split.")
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(f"--val-fraction {fraction}: must be at least 0 and below 1.")
        if not 2 <= self.shard_tokens < 2**31:
            raise ConfigError(f"--shard-tokens {self.shard_tokens}: must be from 2 to 2**31 - 1.")
        if self.name is not None and not re.fullmatch(r"[^/\\:*?\"<>|\0]+", self.name):
            raise ConfigError(
                f"--name {self.name!r}: must be part of a file name. Use -o for folders."
            )

    @property
    def built_in(self) -> str | None:
        """The name of the built-in text; None for text files."""
        return self.what[0] if self.what[0] in FILE_PREFIXES else None


@dataclass(frozen=True)
class Prepared:
    """The token files that were written."""

    train_paths: list[Path]
    val_paths: list[Path]
    train_tokens: int
    val_tokens: int
    removed: list[Path]
    """Files of an earlier run under the same name."""
    tokenizer: Tokenizer


def prepare_files(request: Request, note: Callable[[str], None]) -> Prepared:
    """Write the token files of `request`; `note` is called with remarks on the text.

    Raises ConfigError, DataError or TokenizerError for what cannot be read or is too short, and
    RunError if the disk refuses. Then the files of this run are removed; files of an earlier run
    may already have been replaced. Each file is written atomically, but not the set: a killed
    process can leave finished new files next to those of an earlier run.
    """
    built_in = request.built_in
    default_tokenizer = "bytes" if built_in == PYTHON_DOCS else "gpt2"
    tokenizer = load_tokenizer(request.tokenizer or default_tokenizer)
    if built_in == PYTHON_DOCS:
        origin, pieces = _python_docs(tokenizer, note)
    elif built_in == TINYSHAKESPEARE:
        origin, pieces = _tinyshakespeare(request.source, tokenizer)
    else:
        origin, pieces = _text_files(request, tokenizer)
    name = request.name or _default_name(request)
    _make_folder(request.output)
    with (
        ShardSeries(request.output, f"{name}_train", request.shard_tokens) as train,
        ShardSeries(request.output, f"{name}_val", sys.maxsize) as val,
    ):
        for train_tokens, val_tokens in pieces:
            train.append(train_tokens)
            val.append(val_tokens)
        _check_enough(train.num_tokens, val.num_tokens, wants_val=request.val_fraction != 0)
        val.finish()
        train.finish()
        parts = {"train": train.paths, "val": val.paths}
        records = write_token_records(request.output, name, parts, tokenizer, origin)
    removed = remove_stale(request.output, name, [*train.paths, *val.paths, *records])
    return Prepared(train.paths, val.paths, train.num_tokens, val.num_tokens, removed, tokenizer)


Pieces: TypeAlias = Iterator[tuple[Tokens, Tokens]]
"""Training and validation tokens, piece by piece."""


def _python_docs(tokenizer: Tokenizer, note: Callable[[str], None]) -> tuple[Origin, Pieces]:
    docs = python_docs_text()
    for text in docs.notes:
        note(text)
    origin = corpora.python_docs_origin(docs)
    return origin, iter([corpora.python_docs_tokens(docs, tokenizer)])


def _tinyshakespeare(source: Path | None, tokenizer: Tokenizer) -> tuple[Origin, Pieces]:
    text = corpora.tinyshakespeare_text(source)
    tokens = corpora.tinyshakespeare_tokens(text, tokenizer)
    cut = corpora.SHAKESPEARE_VAL_TOKENS
    if len(tokens) < cut + 2:
        raise DataError(
            f"{source}: {len(tokens):,} tokens, of which the first {cut:,} are for validation; "
            f"nothing is left to train on. Is this the TinyShakespeare text? For other text: "
            f"python -m cupygpt.prepare {shell_word(source)}"
        )
    split = f"the first {cut:,} tokens are for validation"
    origin = Origin([TINYSHAKESPEARE], 1, corpora.text_sha256([text]), split)
    return origin, iter([(tokens[cut:], tokens[:cut])])


def _text_files(request: Request, tokenizer: Tokenizer) -> tuple[Origin, Pieces]:
    hint = f"Check the path. Built-in texts: {', '.join(FILE_PREFIXES)}."
    paths = [
        path
        for what in request.what
        for path in matching_files(what, kind="text files", example="*.txt", hint=hint)
    ]
    fraction = VAL_FRACTION if request.val_fraction is None else request.val_fraction
    names = [path.name for path in paths]
    content = corpora.text_sha256(text for path in paths for text in ("", *read_text(path)))
    split = f"the last {100 * fraction:g} % of each document are for validation"
    origin = Origin(names[:NAMED_SOURCES], len(names), content, split)
    return origin, _tails(paths, fraction, tokenizer)


def _tails(paths: Sequence[Path], fraction: float, tokenizer: Tokenizer) -> Pieces:
    """Each file is a document, of which the last tokens are for validation.

    Both parts of a document start with end of text, if the tokenizer has one.
    """
    eot = np.array([] if tokenizer.eot is None else [tokenizer.eot], np.uint16)
    owed = 0.0
    for path in paths:
        tokens = np.concatenate([tokenizer.encode(piece) for piece in read_text(path)])
        train, val, owed = split_off_end(tokens, owed + fraction * tokens.size)
        yield (
            np.concatenate([eot, train]) if train.size else train,
            np.concatenate([eot, val]) if val.size else val,
        )


def _default_name(request: Request) -> str:
    if request.built_in:
        return FILE_PREFIXES[request.built_in]
    stem = Path(request.what[0]).stem if len(request.what) == 1 else ""
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
