"""Writing a model in another format: llm.c's .bin, a Hugging Face folder, or GGUF."""

import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cupygpt.checkpoint.model_file import ModelFile, save_model
from cupygpt.data.tokenizer_files import pattern_path
from cupygpt.data.vocabulary import Vocabulary
from cupygpt.errors import ConfigError
from cupygpt.exchange.gguf import GGUF_PRECISIONS, write_gguf
from cupygpt.exchange.hf_config import CONFIG_FILE, config_values
from cupygpt.exchange.hf_folder import INDEX_FILE, PICKLES, WEIGHTS_FILE, write_weights
from cupygpt.exchange.hf_tokenizer_files import TOKENIZER_FILES, tokenizer_files
from cupygpt.exchange.note import ModelNote, is_note, note_path, write_note
from cupygpt.files import atomic_write, os_errors_name, remove_file, remove_quietly

PRECISIONS = GGUF_PRECISIONS
"""What --precision may be; "fp16" is for GGUF alone."""


class Format(Enum):
    """What a target is, by its name."""

    MODEL_FILE = "a model file"
    GGUF = "a GGUF file"
    HUGGING_FACE = "a Hugging Face folder"


_SUFFIXES = {".bin": Format.MODEL_FILE, ".gguf": Format.GGUF}
_NO_FOLDERS = (".safetensors", ".json", ".pt", ".pth", ".ckpt", ".onnx", ".npz", ".txt")


@dataclass(frozen=True)
class Converted:
    """A model to be written, and what goes with it; None is not known or not wanted.

    `name` is for people. A model file gets the `note`, with `tokenizer_file` as the content of the
    file that the note names, and `split_file` of the one beside it. The other formats hold the
    `vocabulary`. `longest` is the number of positions that were trained.
    """

    model: ModelFile
    name: str
    longest: int
    note: ModelNote | None = None
    tokenizer_file: bytes | None = None
    split_file: bytes | None = None
    vocabulary: Vocabulary | None = None


def format_of(target: Path) -> Format:
    """The format that the name of a target asks for. Raises ConfigError for a misleading name."""
    if target.suffix in _SUFFIXES:
        return _SUFFIXES[target.suffix]
    if target.suffix in _NO_FOLDERS:
        raise ConfigError(
            f"{target}: files that end in {target.suffix} are not written. Name a model file "
            f"(NAME.bin), a GGUF file (NAME.gguf), or a folder for Hugging Face's files."
        )
    return Format.HUGGING_FACE


def check_target(target: Path, precision: str | None, *, overwrite: bool) -> None:
    """Raise ConfigError if `target` cannot be written: before anything large is read.

    With `overwrite` a file is replaced, and in a folder the files of an earlier export.
    """
    kind = format_of(target)
    if precision == "fp16" and kind is not Format.GGUF:
        raise ConfigError("--precision fp16 is for GGUF files; take fp32 or bf16.")
    is_folder = kind is Format.HUGGING_FACE
    if target.is_dir() != is_folder and target.exists():
        raise ConfigError(
            f"{target} is {'a file' if is_folder else 'a folder'}, but {kind.value} should be "
            f"written there. Choose another name."
        )
    used = target.exists() and (not is_folder or any(target.iterdir()))
    companions = []
    if kind is Format.MODEL_FILE:
        tokenizer = tokenizer_path(target)
        companions = [note_path(target), tokenizer, pattern_path(tokenizer)]
    for path in [*([target] if used else []), *(path for path in companions if path.exists())]:
        if not overwrite:
            raise ConfigError(
                f"{path} is there already. Choose another name, or replace it with --overwrite."
            )
    if companions and note_path(target).exists() and not is_note(note_path(target)):
        raise ConfigError(
            f"{note_path(target)} is there, and no note of a model. Choose another name than "
            f"{target.name}, beside which a note of that name may be written."
        )
    if is_folder and used and not (target / CONFIG_FILE).is_file():
        raise ConfigError(f"{target}: --overwrite replaces an export, but this folder holds none.")
    if not is_folder and not target.parent.is_dir():
        raise ConfigError(f"{target.parent}: there is no such folder. Make it first.")


def write_target(target: Path, converted: Converted, precision: str) -> list[Path]:
    """Write the files of a target that was checked; returns them. RunError if the disk refuses.

    If one cannot be written, none of the new ones stays.
    """
    kind = format_of(target)
    if kind is Format.MODEL_FILE:
        return _write_model_file(target, converted, precision)
    if kind is Format.GGUF:
        assert converted.vocabulary is not None
        write_gguf(target, converted.model, converted.vocabulary, precision, converted.name)
        return [target]
    return _write_folder(target, converted, precision)


def _write_model_file(target: Path, converted: Converted, precision: str) -> list[Path]:
    """The .bin; beside it the note, and the tokenizer if the note names a file."""
    model, note, written = converted.model, converted.note, [target]
    with ExitStack() as undo:
        path = tokenizer_path(target)
        contents = {path: converted.tokenizer_file, pattern_path(path): converted.split_file}
        for path, content in contents.items():
            if content is None or note is None:
                continue
            _remove_on_failure(undo, path)
            with atomic_write(path) as file:
                file.write(content)
            written.append(path)
        _remove_on_failure(undo, target)
        checksum = save_model(target, model.config, model.parameters, precision)
        if note is None:
            remove_file(note_path(target))  # of the model that was here
        else:
            _remove_on_failure(undo, note_path(target))
            written.append(write_note(target, note, checksum))
        undo.pop_all()
    return written


def tokenizer_path(target: Path) -> Path:
    """Where the tokenizer of a model file lies, if it needs a file."""
    return target.with_suffix(".tokenizer")


def _remove_on_failure(undo: ExitStack, path: Path) -> None:
    if not path.exists():
        undo.callback(remove_quietly, path)


def _write_folder(target: Path, converted: Converted, precision: str) -> list[Path]:
    config, vocabulary = converted.model.config, converted.vocabulary
    eot = vocabulary.eot if vocabulary else None
    texts = {CONFIG_FILE: json.dumps(config_values(config, precision, eot), indent=2) + "\n"}
    if vocabulary is not None:
        texts |= tokenizer_files(vocabulary, converted.longest)
    paths = [target / name for name in (*texts, WEIGHTS_FILE)]
    with ExitStack() as undo:
        if not target.exists():
            with os_errors_name(target):
                target.mkdir(parents=True)
            undo.callback(_remove_folder_quietly, target)
        # What other programs would read of an earlier export.
        for name in {INDEX_FILE, *PICKLES, *TOKENIZER_FILES} - texts.keys():
            remove_file(target / name)
        for path in paths:
            _remove_on_failure(undo, path)
        for name, text in texts.items():
            with atomic_write(target / name) as file:
                file.write(text.encode())
        write_weights(target / WEIGHTS_FILE, converted.model, precision)
        undo.pop_all()
    return paths


def _remove_folder_quietly(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
