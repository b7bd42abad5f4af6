"""The note beside a model file: which trained model it is a copy of, and how to use it.

llm.c's format has no room for that, so `convert` writes a small JSON file, `model.bin.json` beside
`model.bin`. A model file needs no note.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupygpt.errors import CheckpointError
from cupygpt.files import atomic_write, file_checksum
from cupygpt.strict_json import is_count, read_object

FORMAT = "cupygpt model note"
VERSION = 1
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelNote:
    """What is known of a trained model besides its weights; None is not known.

    `origin` says in words where the weights come from. `tokenizer` is "gpt2", "bytes" or a file.
    `text_start` holds the ids with which the documents of its training data begin,
    `trained_length` is the number of positions that were trained.
    """

    origin: str
    tokenizer: str | None = None
    text_start: list[int] | None = None
    trained_length: int | None = None


def note_path(model: Path) -> Path:
    """Where the note of a model file lies."""
    return model.with_name(model.name + ".json")


def write_note(model: Path, note: ModelNote, checksum: int) -> Path:
    """Write the note of a model file with this CRC-32; returns its path.

    The tokenizer's file must lie beside the model; its name alone is recorded. Raises RunError if
    the disk refuses.
    """
    tokenizer = note.tokenizer
    values = {
        "format": FORMAT,
        "version": VERSION,
        "model": {"bytes": model.stat().st_size, "crc32": checksum},
        "origin": note.origin,
        "tokenizer": tokenizer if _is_builtin(tokenizer) else {"file": Path(str(tokenizer)).name},
        "text_start": note.text_start,
        "trained_length": note.trained_length,
    }
    path = note_path(model)
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")
    return path


def read_note(model: Path) -> ModelNote | None:
    """The note beside a model file; None if there is none.

    Raises CheckpointError if it is damaged, or belongs to another content than the file has now.
    """
    path = note_path(model)
    if not path.is_file() or not is_note(path):
        return None
    values = read_object(path, _MOST_BYTES)
    remedy = f"Convert the model again, or delete {path.name}: then this is a model like any other."
    try:
        if values["version"] != VERSION:
            raise CheckpointError(
                f"{path}: a note of version {values['version']!r}; {VERSION} is known. {remedy}"
            )
        size, checksum = values["model"]["bytes"], values["model"]["crc32"]
        note = _parse(model, values)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: this note is damaged ({error}). {remedy}") from error
    if size != model.stat().st_size or checksum != file_checksum(model):
        raise CheckpointError(
            f"{path} belongs to another content than {model.name} has: the model was replaced or "
            f"damaged after the note was written. {remedy}"
        )
    return note


def is_note(path: Path) -> bool:
    """Whether a JSON file says that it is a note. Raises CheckpointError if it is no JSON."""
    return bool(read_object(path, _MOST_BYTES).get("format") == FORMAT)


def _parse(model: Path, values: dict[str, Any]) -> ModelNote:
    origin, tokenizer = values["origin"], values["tokenizer"]
    start, length = values["text_start"], values["trained_length"]
    if not _is_builtin(tokenizer):
        name = tokenizer["file"]
        if type(name) is not str or Path(name).name != name:
            raise TypeError("the tokenizer's file is no plain name")
        tokenizer = str(model.with_name(name))
    if type(origin) is not str:
        raise TypeError("its origin is no text")
    if start is not None and not (type(start) is list and all(map(is_count, start))):
        raise TypeError("its text_start is no list of ids")
    if length is not None and not (is_count(length) and length > 0):
        raise TypeError("its trained_length is no number of positions")
    return ModelNote(origin, tokenizer, start, length)


def _is_builtin(tokenizer: object) -> bool:
    return tokenizer in (None, "gpt2", "bytes")
