"""What a name stands for: a model file, a run folder and its step, or a Hugging Face folder."""

import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.checkpoint.checkpoint import (
    best_step,
    checkpoint_steps,
    load_model,
    model_path,
    validated_best_step,
)
from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import config_from_descriptor
from cupygpt.data import hf_tokenizer
from cupygpt.data.vocabulary import Vocabulary
from cupygpt.errors import CheckpointError, ConfigError, TokenizerError
from cupygpt.exchange.hf_folder import (
    PICKLES,
    find_model,
    how_to_save_again,
    is_hugging_face,
    load_hugging_face,
)
from cupygpt.exchange.note import read_note
from cupygpt.files import check_can_end, user_path
from cupygpt.run_folder.folder import newest_run
from cupygpt.run_folder.record import RECORD, TOKENIZER_COPY, read_record

NEWEST = "newest"
"""`RUN@newest` is the run's newest checkpoint."""

KINDS = (
    "a model file (.bin), a run folder (RUN, RUN@newest or RUN@STEP) or a Hugging Face folder "
    "(config.json with model.safetensors)"
)
"""What can be named, in words."""

_ELSEWHERE = {".gguf", ".safetensors", ".pt", ".pth", ".ckpt", ".onnx", ".npz", ".h5"}
"""Files of other programs: a name that ends so is meant as a file."""


class Kind(Enum):
    """What was named."""

    MODEL_FILE = "model file"
    RUN = "run"
    HUGGING_FACE = "Hugging Face folder"


@dataclass(frozen=True)
class WeightSource:
    """Weights that a name stands for, not yet loaded, and what is known of their training.

    `path` is the model file, of a run the one of its `step`, or the Hugging Face folder. `origin`
    says in words what it is. `is_trained`: the weights are known to be those of a trained model.
    `tokenizer` names the tokenizer of the data ("gpt2", "bytes" or a file), `text_start` holds the
    ids with which its documents begin, `trained_length` is the number of positions that were
    trained; None is not known. `vocabulary` is that of a Hugging Face folder. `notes` says what a
    person should know, one sentence each.
    """

    kind: Kind
    path: Path
    origin: str
    is_trained: bool
    step: int | None = None
    tokenizer: str | None = None
    text_start: list[int] | None = None
    trained_length: int | None = None
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()

    @property
    def exact_name(self) -> str:
        """The name that stands for the same weights when the run has other checkpoints."""
        return str(self.path) if self.step is None else f"{self.path.parent}@{self.step}"

    def as_record(self, weights: np.ndarray) -> dict[str, Any]:
        """What a run records of the `weights` (P,) that it began with: whence, and their CRC-32."""
        return {
            "kind": self.kind.value,
            "path": str(self.path.resolve()),
            "step": self.step,
            "is_trained": self.is_trained,
            "crc32": zlib.crc32(weights.data),
        }


def names_weights(name: str) -> bool:
    """Whether `name` means weights on disk, which may be missing, and not a descriptor.

    A descriptor wins over a folder of the same name; write ./d12 for the folder.
    """
    try:
        config_from_descriptor(name)
    except ConfigError:
        path = user_path(name)
        looks_like_a_path = path.name != name or "@" in name or path.suffix == ".bin"
        return looks_like_a_path or path.exists() or path.suffix in _ELSEWHERE
    return False


def find_weights(name: str | None) -> WeightSource:
    """The weights that `name` stands for; None is the newest run. Reads headers, no weights.

    Raises CheckpointError that says what is there instead, and what to do.
    """
    if name is None:
        return _find_in_folder(newest_run(), "", chosen=False)
    path, at, which = user_path(name), "", ""
    if not path.exists() and "@" in name:
        before, at, which = name.rpartition("@")
        path = user_path(before)
    if path.is_dir():
        return _find_in_folder(path, which, chosen=bool(at))
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such model. Name {KINDS}. A model of huggingface.co must lie on "
            f"this disk: hf download NAME --local-dir FOLDER."
        )
    if at:
        raise CheckpointError(f"{name}: @ chooses a checkpoint of a run folder; {path} is a file.")
    check_can_end(path, CheckpointError)
    _refuse_other_files(path)
    return _find_file(path)


def load_weights(source: WeightSource) -> ModelFile:
    """The weights of a source, as from a model file. Raises CheckpointError."""
    if source.kind is Kind.HUGGING_FACE:
        return load_hugging_face(source.path)
    try:
        return load_model(source.path)
    except (CheckpointError, OSError) as error:
        if source.step is None or source.path.exists():
            raise
        raise CheckpointError(_what_became_of(source.path.parent, source.step)) from error


def _find_in_folder(folder: Path, which: str, *, chosen: bool) -> WeightSource:
    if checkpoint_steps(folder):
        return _find_in_run(folder, which if chosen else None)
    if chosen:
        raise CheckpointError(
            f"{folder}@{which}: @ chooses a checkpoint of a run, but the folder holds none."
        )
    if is_hugging_face(folder):
        return _find_hugging_face(folder)
    what = ""
    if (folder / RECORD).is_file():
        what = " This run ended before its first checkpoint."
    elif any((folder / name).exists() for name in PICKLES):
        what = f" It holds a pickle, but no config.json. {how_to_save_again(folder)}"
    elif any(folder.glob("model_????????.bin")):
        what = " It has no complete checkpoint (no DONE_ file), but model files that can be named."
    raise CheckpointError(f"{folder}: this folder holds no model.{what} Name {KINDS}.")


def _find_in_run(folder: Path, which: str | None) -> WeightSource:
    """The checkpoint of a run: "newest", a step, or None for the best one."""
    steps = checkpoint_steps(folder)
    notes: tuple[str, ...] = ()
    if which is None:
        best, step = validated_best_step(folder), best_step(folder)
        kept = "best" if best == step else NEWEST
        if best and best != step:
            notes = (
                f"{folder}: the lowest validation loss was that of step {best}, whose checkpoint "
                f"is not there; these are the weights of the newest, step {step}",
            )
    elif which == NEWEST:
        step, kept = steps[-1], NEWEST
    elif which.isascii() and which.isdigit() and int(which) in steps:
        step, kept = int(which), "chosen"
    else:
        known = ", ".join(str(step) for step in steps)
        raise CheckpointError(
            f"{folder}@{which}: this run keeps no such checkpoint. After @ write {NEWEST}, or one "
            f"of its steps: {known}."
        )
    path, origin = model_path(folder, step), f"step {step} ({kept}) of run {folder}"
    if not (folder / RECORD).is_file():  # a run of llm.c
        return WeightSource(Kind.RUN, path, origin, is_trained=True, step=step, notes=notes)
    tokenizer, text_start, trained_length = _training(folder)
    return WeightSource(
        Kind.RUN,
        path,
        origin,
        is_trained=True,
        step=step,
        tokenizer=tokenizer,
        text_start=text_start,
        trained_length=trained_length,
        notes=notes,
    )


def _what_became_of(folder: Path, step: int) -> str:
    """What to do about a checkpoint whose model file was there a moment ago, or should be."""
    steps = checkpoint_steps(folder)
    if step not in steps:
        return (
            f"{folder}: the checkpoint of step {step} was removed meanwhile: the run still goes "
            f"on, and keeps other ones now. Try again."
        )
    others = ", ".join(f"{folder}@{other}" for other in steps if other != step)
    return (
        f"{model_path(folder, step)}: missing, though the checkpoint of step {step} should be "
        f"complete (DONE_{step:08d}). {f'Name another one: {others}.' if others else ''}".rstrip()
    )


def _training(folder: Path) -> tuple[str | None, list[int] | None, int | None]:
    """Tokenizer, beginning of documents and trained length that a run has recorded."""
    record = read_record(folder)
    copy = folder / TOKENIZER_COPY
    tokenizer = str(copy) if copy.is_file() else record["data"].get("tokenizer")
    # Earlier versions recorded the length only where a flag set it.
    trained_length = record.get("trained_length") or record["config"].get("seq_len")
    return tokenizer, record.get("text_start"), trained_length


def _find_hugging_face(folder: Path) -> WeightSource:
    find_model(folder)
    tokenizer, vocabulary, notes = None, None, []
    try:
        vocabulary = hf_tokenizer.read_folder(folder)
    except TokenizerError as error:
        notes.append(f"the tokenizer of this model is not used: {error}")
    if vocabulary is not None:
        own = folder / hf_tokenizer.TOKENIZER_JSON
        tokenizer = vocabulary.builtin_name or (str(own) if own.exists() else None)
        if tokenizer is None:
            notes.append(
                f"{folder}: the tokenizer can be used once the model is converted: python -m "
                f"cupygpt.convert writes {hf_tokenizer.VOCAB_JSON} and its merges as one file."
            )
    return WeightSource(
        Kind.HUGGING_FACE,
        folder,
        f"Hugging Face folder {folder}",
        is_trained=True,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        notes=tuple(notes),
    )


def _find_file(path: Path) -> WeightSource:
    """A model file, with its note, or with the record of the run in whose folder it lies."""
    note = read_note(path)
    if note is not None:
        return WeightSource(
            Kind.MODEL_FILE,
            path,
            f"{path}, a copy of {note.origin}",
            is_trained=True,
            tokenizer=note.tokenizer,
            text_start=note.text_start,
            trained_length=note.trained_length,
        )
    if not (path.parent / RECORD).is_file():
        return WeightSource(Kind.MODEL_FILE, path, str(path), is_trained=False)
    try:
        tokenizer, text_start, trained_length = _training(path.parent)
    except CheckpointError as error:
        notes = (f"what this model was trained on is not known: {error}",)
        return WeightSource(Kind.MODEL_FILE, path, str(path), is_trained=False, notes=notes)
    return WeightSource(
        Kind.MODEL_FILE,
        path,
        str(path),
        is_trained=False,
        tokenizer=tokenizer,
        text_start=text_start,
        trained_length=trained_length,
    )


def _refuse_other_files(path: Path) -> None:
    """Raise CheckpointError for the files of other programs, with the way from there to here."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error.strerror or error}).") from error
    if begin == b"GGUF":
        raise CheckpointError(
            f"{path}: a GGUF file. They are written, not read. Use the Hugging Face folder that it "
            f"was made from."
        )
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path}: weights alone do not say what network they are. Name their folder, which "
            f"needs a config.json too: {path.parent}"
        )
    if begin == b"PK\x03\x04" or begin[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: this is a pickle of PyTorch, which can run any program when it is read, so "
            f"it is not. {how_to_save_again(path.parent)}"
        )
