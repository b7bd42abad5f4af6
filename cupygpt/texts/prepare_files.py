"""From texts to the token files of one data set: a training series and a validation file."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cupygpt.config import GPT2_VOCAB
from cupygpt.console.paste import shell_word
from cupygpt.console.work_bar import WorkBar
from cupygpt.data.token_record import (
    Origin,
    RecordedTokenizer,
    learnt_tokenizer_path,
    put_in_place,
    unfinished,
    write_token_records,
)
from cupygpt.data.token_writer import MAX_TOKENS
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer
from cupygpt.data.tokenizer_files import pattern_path
from cupygpt.data.vocabulary import GPT2_SHA256
from cupygpt.errors import ConfigError, DataError, RunError
from cupygpt.files import remove_quietly
from cupygpt.texts import corpora
from cupygpt.texts.find_input import Note
from cupygpt.texts.headerless import Pieces, headerless_files
from cupygpt.texts.own_vocabulary import TrainingText, is_own, train_tokenizer
from cupygpt.texts.prepare_texts import OwnTexts
from cupygpt.texts.published.sets import TOKENS
from cupygpt.texts.published.shards import published_shards, tokens_of
from cupygpt.texts.published.texts import with_published_texts
from cupygpt.texts.python_docs import python_docs_text
from cupygpt.texts.request import PYTHON_DOCS, TINYSHAKESPEARE, Request
from cupygpt.texts.writing.lock import one_writer
from cupygpt.texts.writing.shard_writer import ShardSeries, remove_partial, remove_stale

MOST_SHAKESPEARE_VAL_CHARACTERS = 2**17
"""Of tinyshakespeare a vocabulary is not learnt from so much text at the beginning: the tokens for
validation have four characters or fewer on average."""


@dataclass(frozen=True)
class Prepared:
    """The token files that were written."""

    train_paths: list[Path]
    val_paths: list[Path]
    train_tokens: int
    val_tokens: int
    removed: list[Path]
    """Files of an earlier run under the same name."""
    tokenizer: Tokenizer | RecordedTokenizer


def prepare_files(request: Request, note: Note, bar: WorkBar | None = None) -> Prepared:
    """Write the token files of `request`; `note` is called with remarks on the text.

    The files get their names when all of them are complete; until then those of an earlier run
    stay. A run that is stopped, or whose disk is full, leaves partial files if it has come far
    enough to go on from them when it is started again, and else nothing.
    Raises ConfigError, DataError or TokenizerError for what cannot be read or is too short, or if
    another process writes the same files, and RunError if the disk refuses.
    """
    bar = bar or WorkBar()
    if request.published and request.published.kind == TOKENS:
        _make_folder(request.output)
        return _published_shards(request, note, bar)
    default_tokenizer = "bytes" if request.built_in == PYTHON_DOCS else "gpt2"
    spec = request.tokenizer or default_tokenizer
    with bar.stage("loading the tokenizer"):
        tokenizer = None if is_own(spec) else load_tokenizer(spec)
    _make_folder(request.output)
    with one_writer(request.output, request.file_prefix):
        try:
            return _prepare_texts(request, spec, tokenizer, note, bar)
        finally:
            learnt = unfinished(learnt_tokenizer_path(request.output, request.file_prefix))
            remove_quietly(learnt)
            remove_quietly(pattern_path(learnt))


def _prepare_texts(
    request: Request, spec: str, tokenizer: Tokenizer | None, note: Note, bar: WorkBar
) -> Prepared:
    """The same for texts; without a `tokenizer` the one that `spec` asks for is learnt."""
    if request.published:
        request = with_published_texts(request, note, bar)
    if not request.built_in and not request.headerless:
        with OwnTexts(request, note, bar) as texts:
            tokenizer = tokenizer or _learnt(spec, request, texts.training_text(), note)
            return _write_texts(texts, _noted(tokenizer, note), request, note)
    tokenizer = _noted(tokenizer or _learnt(spec, request, _training_text(request), note), note)
    if request.built_in == PYTHON_DOCS:
        origin, pieces = _python_docs(tokenizer, note)
    elif request.built_in == TINYSHAKESPEARE:
        origin, pieces = _tinyshakespeare(request, tokenizer)
    else:
        origin, pieces = headerless_files(request, tokenizer, note)
    train, val = _series(request, tokenizer)
    try:
        for train_tokens, val_tokens in pieces:
            for series, tokens in ((train, train_tokens), (val, val_tokens)):
                series.write(tokens, [tokens.size] if tokens.size else [])
        return _complete(request, train, val, tokenizer, origin)
    except BaseException:
        train.remove()
        val.remove()
        raise


def _published_shards(request: Request, note: Note, bar: WorkBar) -> Prepared:
    files = published_shards(request, note, bar)
    tokenizer = RecordedTokenizer("gpt2", GPT2_SHA256, GPT2_VOCAB, GPT2_VOCAB - 1, None)
    train_tokens, val_tokens = tokens_of(files.train), tokens_of(files.val)
    return Prepared(files.train, files.val, train_tokens, val_tokens, [], tokenizer)


def _write_texts(texts: OwnTexts, tokenizer: Tokenizer, request: Request, note: Note) -> Prepared:
    train, val = _series(request, tokenizer)
    journal = texts.journal(tokenizer)
    try:
        texts.write(tokenizer, train, val, journal)
        return _complete(request, train, val, tokenizer, texts.origin)
    except BaseException as error:
        if journal.saved and isinstance(error, KeyboardInterrupt | SystemExit | RunError):
            train.close()
            val.close()
            note("what was written so far stays: the same command goes on from there")
        else:
            train.remove()
            val.remove()
            remove_quietly(journal.path)
        raise


def _learnt(spec: str, request: Request, text: TrainingText, note: Note) -> Tokenizer:
    return train_tokenizer(
        spec, text, learnt_tokenizer_path(request.output, request.file_prefix), note
    )


def _noted(tokenizer: Tokenizer, note: Note) -> Tokenizer:
    if tokenizer.note is not None:
        note(tokenizer.note)
    return tokenizer


def _training_text(request: Request) -> TrainingText:
    """The built-in text from which a vocabulary is learnt."""
    if request.built_in == PYTHON_DOCS:
        documents, _ = corpora.hold_out(python_docs_text().documents)
        return TrainingText([*documents, None], sum(len(text.encode()) for text in documents))
    text = corpora.tinyshakespeare_text(request.source, request.mirror)[
        MOST_SHAKESPEARE_VAL_CHARACTERS:
    ]
    return TrainingText([text, None], len(text.encode()))


def _series(request: Request, tokenizer: Tokenizer) -> tuple[ShardSeries, ShardSeries]:
    folder, name = request.output, request.file_prefix
    train = ShardSeries(folder, f"{name}_train", request.shard_tokens, tokenizer.format)
    return train, ShardSeries(folder, f"{name}_val", MAX_TOKENS - 1, tokenizer.format)


def _complete(
    request: Request, train: ShardSeries, val: ShardSeries, tokenizer: Tokenizer, origin: Origin
) -> Prepared:
    """Give all files their names, and remove what belongs to an earlier run."""
    folder, name = request.output, request.file_prefix
    _check_enough(train.num_tokens, val.num_tokens, wants_val=request.val_fraction != 0)
    parts = {"train": train.finish(), "val": val.finish()}
    records = write_token_records(folder, name, parts, tokenizer, origin)
    try:
        put_in_place([*parts["train"], *parts["val"], *records])
    except BaseException:
        for now, path in records:
            if now != path:
                remove_quietly(now)
        raise
    remove_partial(folder, name)
    paths = {part: [path for _, path in places] for part, places in parts.items()}
    stay = [*paths["train"], *paths["val"], *(path for _, path in records)]
    return Prepared(
        paths["train"],
        paths["val"],
        train.num_tokens,
        val.num_tokens,
        remove_stale(folder, name, stay),
        tokenizer,
    )


def _python_docs(tokenizer: Tokenizer, note: Note) -> tuple[Origin, Pieces]:
    docs = python_docs_text()
    for text in docs.notes:
        note(text)
    origin = corpora.python_docs_origin(docs)
    return origin, iter([corpora.python_docs_tokens(docs, tokenizer)])


def _tinyshakespeare(request: Request, tokenizer: Tokenizer) -> tuple[Origin, Pieces]:
    source = request.source
    text = corpora.tinyshakespeare_text(source, request.mirror)
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
