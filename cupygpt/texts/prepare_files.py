"""From texts to the token files of one data set: a training series and a validation file."""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cupygpt.console.paste import shell_word
from cupygpt.data.token_files import matching_files
from cupygpt.data.token_format import TokenFormat
from cupygpt.data.token_record import (
    NAMED_SOURCES,
    Origin,
    learnt_tokenizer_path,
    write_token_records,
)
from cupygpt.data.token_writer import headerless_blocks
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer
from cupygpt.errors import ConfigError, DataError
from cupygpt.texts import corpora
from cupygpt.texts.hold_out import Parts, choose_hold_out, split_documents
from cupygpt.texts.own_vocabulary import TrainingText, check_own, is_own, train_tokenizer
from cupygpt.texts.python_docs import python_docs_text
from cupygpt.texts.shard_writer import ShardSeries, remove_stale
from cupygpt.texts.text_files import SEPARATOR, TextFacts, look_at_text, read_documents

TINYSHAKESPEARE = "tinyshakespeare"
PYTHON_DOCS = "python-docs"
FILE_PREFIXES = {TINYSHAKESPEARE: "tiny_shakespeare", PYTHON_DOCS: "python_docs"}
"""The built-in texts, and what their token files are called."""

VAL_FRACTION = 0.1
"""Of a text of a megabyte that is enough for a loss that chance changes by a hundredth."""
SHARD_TOKENS = 10**8
MOST_SHAKESPEARE_VAL_CHARACTERS = 2**17
"""Of tinyshakespeare a vocabulary is not learnt from so much text at the beginning: the tokens for
validation have four characters or fewer on average."""

NAMED_FILES = 3
"""So many files are named in a remark."""

Note: TypeAlias = Callable[[str], None]
"""Takes a remark on the texts."""


@dataclass(frozen=True)
class Request:
    """What to prepare. Raises ConfigError for values that contradict each other or cannot work.

    `what`: one built-in text, or text files and glob patterns. `source` replaces the download of
    tinyshakespeare. `val_fraction` is the share of the text for validation, and `hold_out` one of
    METHODS. With `split_at_endoftext` the text `<|endoftext|>` separates documents. With
    `headerless` the files hold token ids, as nanoGPT writes them. None means the default.
    """

    what: Sequence[str]
    output: Path = Path()
    name: str | None = None
    tokenizer: str | None = None
    source: Path | None = None
    val_fraction: float | None = None
    hold_out: str | None = None
    split_at_endoftext: bool = False
    headerless: bool = False
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
        check_own(self.tokenizer, has_text=not self.headerless)
        fraction = self.val_fraction
        for flag, given in self._of_text_files().items():
            if given and built_in:
                raise ConfigError(f"{flag} is for text files; {built_in[0]} has a fixed split.")
            if given and self.headerless and flag not in ("--val-fraction", "--headerless"):
                raise ConfigError(f"{flag} is for text; --headerless files hold token ids.")
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(f"--val-fraction {fraction}: must be at least 0 and below 1.")
        if not 2 <= self.shard_tokens < 2**31:
            raise ConfigError(f"--shard-tokens {self.shard_tokens}: must be from 2 to 2**31 - 1.")
        if self.name is not None and not re.fullmatch(r"(?!-)[^/\\:*?\"<>|\0-\x1f]+", self.name):
            raise ConfigError(
                f"--name {self.name!r}: must be part of a file name, and not begin with a dash. "
                f"Use -o for folders."
            )

    def _of_text_files(self) -> dict[str, bool]:
        """The flags that a built-in text has no use for, and whether they were given."""
        return {
            "--val-fraction": self.val_fraction is not None,
            "--hold-out": self.hold_out is not None,
            "--split-at-endoftext": self.split_at_endoftext,
            "--headerless": self.headerless,
        }

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


def prepare_files(request: Request, note: Note) -> Prepared:
    """Write the token files of `request`; `note` is called with remarks on the text.

    Raises ConfigError, DataError or TokenizerError for what cannot be read or is too short, and
    RunError if the disk refuses. Then the files of this run are removed; files of an earlier run
    may already have been replaced. Each file is written atomically, but not the set: a killed
    process can leave finished new files next to those of an earlier run.
    """
    built_in = request.built_in
    name = request.name or _default_name(request)
    default_tokenizer = "bytes" if built_in == PYTHON_DOCS else "gpt2"
    spec = request.tokenizer or default_tokenizer
    if is_own(spec):
        _make_folder(request.output)
        path = learnt_tokenizer_path(request.output, name)
        tokenizer = train_tokenizer(spec, _training_text(request), path, note)
    else:
        tokenizer = load_tokenizer(spec)
    if tokenizer.note is not None:
        note(tokenizer.note)
    if built_in == PYTHON_DOCS:
        origin, pieces = _python_docs(tokenizer, note)
    elif built_in == TINYSHAKESPEARE:
        origin, pieces = _tinyshakespeare(request.source, tokenizer)
    elif request.headerless:
        origin, pieces = _headerless_files(request, tokenizer, note)
    else:
        origin, pieces = _text_files(request, tokenizer, note)
    _make_folder(request.output)
    with (
        ShardSeries(
            request.output, f"{name}_train", request.shard_tokens, tokenizer.format
        ) as train,
        ShardSeries(request.output, f"{name}_val", sys.maxsize, tokenizer.format) as val,
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


Pieces: TypeAlias = Iterator[Parts]


def _python_docs(tokenizer: Tokenizer, note: Note) -> tuple[Origin, Pieces]:
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
    split = f"the first {cut:,} tokens"
    origin = Origin([TINYSHAKESPEARE], 1, corpora.text_sha256([text]), split)
    return origin, iter([(tokens[cut:], tokens[:cut])])


def _training_text(request: Request) -> TrainingText:
    """The text from which a vocabulary is learnt."""
    if request.built_in == PYTHON_DOCS:
        documents, _ = corpora.hold_out(python_docs_text().documents)
        return TrainingText([*documents, None], sum(len(text.encode()) for text in documents))
    if request.built_in == TINYSHAKESPEARE:
        text = corpora.tinyshakespeare_text(request.source)[MOST_SHAKESPEARE_VAL_CHARACTERS:]
        return TrainingText([text, None], len(text.encode()))
    split = request.split_at_endoftext
    paths = _input_paths(request, "text files", "**/*.txt", lambda note: None)
    texts = [look_at_text(path, split=split) for path in paths]
    texts = [text for text in texts if text.documents]
    if not texts:
        raise DataError(f"{paths[0]}: the file is empty. Give files with text.")
    pieces = (piece for text in texts for piece in read_documents(text.path, split=split))
    fraction = VAL_FRACTION if request.val_fraction is None else request.val_fraction
    hold_out = choose_hold_out(texts, fraction, request.hold_out or "auto")
    return TrainingText(pieces, sum(text.text_bytes for text in texts), hold_out)


def _text_files(request: Request, tokenizer: Tokenizer, note: Note) -> tuple[Origin, Pieces]:
    split = request.split_at_endoftext
    paths = _input_paths(request, "text files", "**/*.txt", note)
    texts = [look_at_text(path, split=split) for path in paths]
    if not any(text.documents for text in texts):
        raise DataError(f"{texts[0].path}: the file is empty. Give files with text.")
    _note_doubts(texts, split=split, note=note)
    texts = [text for text in texts if text.documents]
    fraction = VAL_FRACTION if request.val_fraction is None else request.val_fraction
    hold_out = choose_hold_out(texts, fraction, request.hold_out or "auto")
    note(f"held out for validation: {hold_out.words} ({hold_out.reason})")
    names = [text.path.name for text in texts]
    content = corpora.text_sha256(text.sha256 for text in texts)
    origin = Origin(names[:NAMED_SOURCES], len(names), content, hold_out.words)
    return origin, split_documents(texts, hold_out, tokenizer, split=split)


def _input_paths(request: Request, kind: str, example: str, note: Note) -> list[Path]:
    """The files that the request names, each once."""
    hint = f"Check the path. Built-in texts: {', '.join(FILE_PREFIXES)}."
    found: dict[str, Path] = {}
    again = []
    for what in request.what:
        for path in matching_files(what, kind=kind, example=example, hint=hint):
            if found.setdefault(os.path.realpath(path), path) is not path:
                again.append(path)
    _note_files(note, again, "named twice, and taken once")
    outputs = rf"{re.escape(request.name or _default_name(request))}_(train(_\d{{6}})?|val)\.bin"
    folder = os.path.realpath(request.output)
    for path in map(Path, found):
        if str(path.parent) == folder and re.fullmatch(outputs, path.name):
            raise ConfigError(f"{path} would be overwritten. Choose another --name or -o.")
    return list(found.values())


def _note_doubts(texts: Sequence[TextFacts], *, split: bool, note: Note) -> None:
    """Say what the user may not know of the texts: empty, there twice, with separators in them."""
    known: dict[str, TextFacts] = {}
    empty = [text.path for text in texts if not text.documents]
    again = [
        text.path
        for text in texts
        if text.documents and known.setdefault(text.sha256, text) is not text
    ]
    _note_files(note, empty, "without text, and left out")
    _note_files(note, again, "with the content of another file, which so counts twice")
    endoftexts = sum(text.endoftexts for text in texts)
    if split:
        note(f"the text {SEPARATOR} occurs {endoftexts:,} times, and separates documents")
    elif endoftexts:
        note(
            f"the text {SEPARATOR} occurs {endoftexts:,} times, and is learnt like any other text; "
            f"if it separates documents, pass --split-at-endoftext"
        )


def _note_files(note: Note, paths: Sequence[Path], what: str) -> None:
    if paths:
        named = ", ".join(map(str, paths[:NAMED_FILES]))
        more = f" and {len(paths) - NAMED_FILES:,} more" if len(paths) > NAMED_FILES else ""
        note(f"{len(paths):,} file{'s' * (len(paths) > 1)} {what}: {named}{more}")


def _headerless_files(request: Request, tokenizer: Tokenizer, note: Note) -> tuple[Origin, Pieces]:
    """Files of token ids alone; those named val* are for validation, else the end of each."""
    paths = _input_paths(request, "files", "*.bin", note)
    val_paths = [path for path in paths if path.name.startswith("val")]
    fraction = VAL_FRACTION if request.val_fraction is None else request.val_fraction
    held_out = f"the last {100 * fraction:g} % of each file"
    if val_paths:
        held_out, fraction = "the files named val*", 0.0
    digest = hashlib.sha256()
    largest = 0
    for path in paths:
        for block in headerless_blocks(path, tokenizer.format):
            digest.update(block.tobytes())
            largest = max(largest, int(block.max()))
    if largest >= tokenizer.vocab_size:
        raise DataError(
            f"the files hold token id {largest:,}, but tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size:,} ids. Name the tokenizer that they were made with."
        )
    if largest < tokenizer.vocab_size // 2:
        note(
            f"no token id is above {largest:,}, but tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size:,} ids. If these are characters (nanoGPT's shakespeare_char), "
            f"prepare its input.txt with --tokenizer bytes instead"
        )
    names = [path.name for path in paths]
    origin = Origin(names[:NAMED_SOURCES], len(names), digest.hexdigest(), held_out)
    shares = {path: 1.0 if path in val_paths else fraction for path in paths}
    return origin, (
        parts
        for path, share in shares.items()
        for parts in _headerless_parts(path, tokenizer.format, share)
    )


def _headerless_parts(path: Path, token_format: TokenFormat, share: float) -> Pieces:
    """The tokens of a file block by block; the last `share` of the file is for validation."""
    num_tokens = path.stat().st_size // token_format.id_bytes
    num_train = num_tokens - int(share * num_tokens)
    for block in headerless_blocks(path, token_format):
        cut = min(max(num_train, 0), block.size)
        yield block[:cut], block[cut:]
        num_train -= block.size


def _default_name(request: Request) -> str:
    if request.built_in:
        return FILE_PREFIXES[request.built_in]
    stem = Path(request.what[0]).stem if len(request.what) == 1 else ""
    return stem if re.fullmatch(r"\w[\w.-]*", stem) else "text"


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
            f"least 2. Give more text, or change --val-fraction (0: no validation file) or "
            f"--hold-out."
        )
