"""What a token file cannot say itself: its tokenizer, its texts, and how they were split.

llm.c's format has no room for that, so `prepare` writes one small JSON file beside each token file:
`NAME_train.bin.json` beside `NAME_train.bin`. A tokenizer that comes from a file is copied beside
them, as `NAME_tokenizer.tiktoken`, so that the folder can be moved as a whole. A token file without
a record can be used as well; then the tokenizer must be named.
"""

import contextlib
import hashlib
import json
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cupygpt.data import tokenizer_files
from cupygpt.data.token_files import (
    TokenShard,
    fingerprint,
    open_shards,
    record_path,
    share_to_hash,
    token_blocks,
)
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer
from cupygpt.data.tokenizer_files import pattern_path
from cupygpt.errors import DataError, TokenizerError
from cupygpt.files import (
    PARTIAL_SUFFIX,
    is_same_file,
    os_errors_name,
    partial_file,
    remove_quietly,
    sync_folder,
)

FORMAT = "cupygpt token record"
VERSION = 1

NAMED_SOURCES = 20
"""So many texts are named in a record."""

Values: TypeAlias = dict[str, Any]

Place: TypeAlias = tuple[Path, Path]
"""Where a file lies, and its name when all files of its data set are there and are renamed."""


@dataclass(frozen=True)
class RecordedTokenizer:
    """The tokenizer of a token file: `Tokenizer`'s fields, and its own file, None for gpt2, bytes.

    `file` is the copy beside the token file.
    """

    name: str
    sha256: str
    vocab_size: int
    eot: int
    file: Path | None

    def __str__(self) -> str:
        return f"{self.name} ({self.vocab_size:,} ids)"


@dataclass(frozen=True)
class Origin:
    """Where the tokens of one data set come from.

    `sources` are the names of the texts, NAMED_SOURCES at most, and `num_sources` counts them all.
    `sources_sha256` is a hash of their content. `split` says how validation tokens were chosen.
    """

    sources: Sequence[str]
    num_sources: int
    sources_sha256: str
    split: str


@dataclass(frozen=True)
class FileRecord:
    """What is known of one token file.

    `part` is "train" or "val". `text_bytes` are the bytes of text that all its tokens stand for;
    end of text counts none. `documents` counts the documents, or parts of them, that begin in it.
    """

    tokenizer: RecordedTokenizer
    part: str
    tokens: int
    text_bytes: int
    documents: int
    origin: Origin


@dataclass(frozen=True)
class TokenRecord:
    """What is known of several token files made with one tokenizer.

    `files` has one entry for each of them, None for a file without a record.
    """

    tokenizer: RecordedTokenizer
    files: tuple[FileRecord | None, ...]


def learnt_tokenizer_path(folder: Path, name: str) -> Path:
    """Where `prepare` writes a vocabulary that it has learnt from the texts of `<name>_*.bin`."""
    return folder / f"{name}.tiktoken"


def unfinished(path: Path) -> Path:
    """What a learnt vocabulary is called until the token files are complete."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def tokenizer_copy_path(folder: Path, name: str) -> Path:
    """Where `prepare` copies the tokenizer of the token files `<name>_*.bin` in `folder`."""
    return folder / f"{name}_tokenizer.tiktoken"


def _copy_of(file: Path, folder: Path, name: str) -> Path:
    """The file itself, if it is the vocabulary that was learnt from these texts."""
    learnt = learnt_tokenizer_path(folder, name)
    return learnt if is_same_file(learnt, file) else tokenizer_copy_path(folder, name)


def write_token_records(
    folder: Path,
    name: str,
    parts: dict[str, list[Place]],
    tokenizer: Tokenizer,
    origin: Origin,
) -> list[Place]:
    """Write the records of the token files `<name>_*.bin` in `folder`; returns their places.

    `parts` are the finished token files, "train" and "val". A tokenizer from a file is copied;
    one that was just learnt is renamed with them. If something cannot be written, nothing of it
    stays, and RunError says what.
    """
    copy: Path | None = None
    written: list[Place] = []
    with contextlib.ExitStack() as undo:
        learnt = learnt_tokenizer_path(folder, name)
        now = unfinished(learnt)
        if tokenizer.file == now:
            copy = learnt
            written += [(now, copy), (pattern_path(now), pattern_path(copy))]
        elif tokenizer.file is not None:
            copy = _copy_of(tokenizer.file, folder, name)
            for path in (copy, pattern_path(copy)):
                if not path.exists():
                    undo.callback(remove_quietly, path)
            copies = tokenizer_files.copy_tokenizer(tokenizer.file, copy)
            written += [(path, path) for path in copies]
        for part, places in parts.items():
            for now, path in places:
                [shard] = open_shards(str(now))
                record = record_path(path)
                partial = record.with_name(record.name + PARTIAL_SUFFIX)
                undo.callback(remove_quietly, partial)
                _write_record(record, shard, tokenizer, copy, part, origin)
                written.append((partial, record))
        undo.pop_all()
    return written


def put_in_place(places: Sequence[Place]) -> None:
    """Rename the files of a data set, when all of them are complete. Raises RunError."""
    for now, path in places:
        with os_errors_name(path):
            now.replace(path)
    for folder in {path.parent for _, path in places}:
        sync_folder(folder)


def _write_record(
    path: Path,
    shard: TokenShard,
    tokenizer: Tokenizer,
    copy: Path | None,
    part: str,
    origin: Origin,
) -> None:
    """Write the record of `shard` that will be called `path`, under its partial name."""
    text_bytes = documents = 0
    for block in token_blocks(shard, shard.num_tokens):
        text_bytes += tokenizer.text_bytes(block)
        documents += int(np.count_nonzero(block == tokenizer.eot))
    [file_now] = fingerprint([shard])
    del file_now["name"]  # the record lies beside the file, and both may be renamed
    values: Values = {
        "format": FORMAT,
        "version": VERSION,
        "file": file_now,
        "tokenizer": {
            "name": tokenizer.name if copy is None else Path(tokenizer.name).name,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
            "file": None if copy is None else copy.name,
        },
        "part": part,
        "text_bytes": text_bytes,
        "documents": documents,
        "origin": asdict(origin),
    }
    values["checksum"] = _checksum(values)
    with partial_file(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")


def read_token_record(shards: Sequence[TokenShard]) -> TokenRecord | None:
    """What the records beside `shards` say; None if none of them has a record.

    The record of a link to a token file is looked for beside the link, then beside the file. A
    record is compared with its file: the number of tokens and the content; of very many files the
    content of some.

    Raises DataError for a record that is damaged, that describes another content than the file has
    (it was written anew without a record), and for files that were made with different tokenizers.
    """
    every = share_to_hash(shards)
    files = tuple(_read(shard, check_content=i % every == 0) for i, shard in enumerate(shards))
    known = [(shard, file) for shard, file in zip(shards, files, strict=True) if file]
    if not known:
        return None
    (first_shard, first), *others = known
    for shard, file in others:
        if file.tokenizer.sha256 != first.tokenizer.sha256:
            raise DataError(
                f"{first_shard.path} was made with the tokenizer {first.tokenizer}, {shard.path} "
                f"with {_told_apart(file.tokenizer, first.tokenizer)}. All files of a run need the "
                f"same tokenizer: prepare one of the texts again."
            )
    return TokenRecord(first.tokenizer, files)


def load_recorded_tokenizer(recorded: RecordedTokenizer) -> Tokenizer:
    """The tokenizer that token files were made with.

    Raises TokenizerError if its file is not there or is not the one of then.
    """
    spec = recorded.name if recorded.file is None else str(recorded.file)
    tokenizer = load_tokenizer(spec)
    if tokenizer.sha256 != recorded.sha256:
        raise TokenizerError(
            f"{spec} is not the tokenizer that the token files were made with: its content has "
            f"changed ({_told_apart(tokenizer, recorded)}). Bring the old file back, or name it "
            f"with --tokenizer."
        )
    return tokenizer


def check_tokenizer(
    tokenizer: Tokenizer, record: TokenRecord, shards: Sequence[TokenShard]
) -> None:
    """Raise TokenizerError unless `tokenizer` is the one that `shards` were made with.

    `record` is what `read_token_record(shards)` returned.
    """
    if tokenizer.sha256 == record.tokenizer.sha256:
        return
    known = next(s for s, file in zip(shards, record.files, strict=True) if file)
    raise TokenizerError(
        f"{known.path} was made with the tokenizer {record.tokenizer}, not with "
        f"{_told_apart(tokenizer, record.tokenizer)}. Leave --tokenizer out, or prepare the text "
        f"again with the tokenizer that you want."
    )


def _told_apart(one: Tokenizer | RecordedTokenizer, other: RecordedTokenizer) -> str:
    """The name of `one`, with a hash of its content if the number of ids does not tell it apart."""
    text = f"{one.name} ({one.vocab_size:,} ids)"
    if one.vocab_size != other.vocab_size:
        return text
    return f"{text}, which has other content (SHA-256 {one.sha256[:16]}, not {other.sha256[:16]})"


def _read(shard: TokenShard, *, check_content: bool) -> FileRecord | None:
    path = record_path(shard.path)
    if shard.path.is_symlink() and not path.exists():
        path = record_path(shard.path.resolve())
    remedy = (
        f"Prepare the text again; or delete {path.name}, and name the tokenizer with --tokenizer."
    )
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: not a file. {remedy}")
        values = json.loads(path.read_bytes())
        if values["format"] != FORMAT or values.pop("checksum") != _checksum(values):
            raise ValueError("its checksum is wrong")
        if values["version"] != VERSION:
            raise DataError(
                f"{path}: a token record of version {values['version']}; {VERSION} is known. "
                f"Use the cupygpt that wrote it. {remedy}"
            )
        _check_describes(path, values["file"], shard, remedy, check_content=check_content)
        return _parse(path, values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"{path}: could not be read ({error.strerror or error}). {remedy}"
        ) from error
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: this token record is damaged ({error}). {remedy}") from error


def _check_describes(
    path: Path, file: Values, shard: TokenShard, remedy: str, *, check_content: bool
) -> None:
    if file["tokens"] != shard.num_tokens:
        difference = f"it counts {file['tokens']:,} tokens, the file has {shard.num_tokens:,}"
    elif check_content and file["sha256"] != shard.sha256(file["hashed"]):
        difference = "the number of tokens is the same, the content is not"
    else:
        return
    raise DataError(
        f"{path} describes another file than {shard.path.name}: {difference}. The token file was "
        f"replaced or damaged after its record was written. {remedy}"
    )


def _parse(path: Path, values: Values) -> FileRecord:
    tokenizer = dict(values["tokenizer"])
    file = tokenizer.pop("file")
    copy = None if file is None else path.with_name(file)  # a ValueError for what is no name
    return FileRecord(
        RecordedTokenizer(**tokenizer, file=copy),
        values["part"],
        values["file"]["tokens"],
        values["text_bytes"],
        values["documents"],
        Origin(**values["origin"]),
    )


def _checksum(values: Values) -> str:
    """The SHA-256 of a record without its checksum, however it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
