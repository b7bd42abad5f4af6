"""What a command that reads a model is given: a run folder, or a model file."""

from dataclasses import dataclass
from pathlib import Path

from cupygpt.checkpoint.checkpoint import best_step, model_path
from cupygpt.errors import CheckpointError
from cupygpt.files import user_path
from cupygpt.run_folder.folder import newest_run
from cupygpt.run_folder.record import RECORD, TOKENIZER_COPY, read_record


@dataclass(frozen=True)
class Source:
    """Weights to use, and what is known of their training; None is not known.

    `tokenizer` names the tokenizer of the data, `text_start` holds the ids with which their
    documents begin, `trained_length` is the number of positions that were trained.
    """

    path: Path
    tokenizer: str | None = None
    text_start: list[int] | None = None
    trained_length: int | None = None


def find_source(name: str | None) -> Source:
    """The model file itself, or the best checkpoint of a run folder, else its newest."""
    path = newest_run() if name is None else user_path(name)
    if not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path}: there is no such run folder or model file.")
    folder = path.parent if path.is_file() else path
    weights = path if path.is_file() else model_path(path, best_step(path))
    if not (folder / RECORD).is_file():
        return Source(weights)
    record = read_record(folder)
    # Earlier versions recorded the length only where a flag set it.
    trained_length = record.get("trained_length") or record["config"].get("seq_len")
    copy = folder / TOKENIZER_COPY
    tokenizer = str(copy) if copy.is_file() else record["data"].get("tokenizer")
    return Source(weights, tokenizer, record.get("text_start"), trained_length)
