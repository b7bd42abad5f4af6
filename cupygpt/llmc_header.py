"""The 1024-byte header that all llm.c files share: which kinds there are, and how it is read."""

from enum import Enum
from pathlib import Path

import numpy as np

from cupygpt.errors import CheckpointError, CupyGPTError

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS


class FileKind(Enum):
    """The kinds of llm.c's files: the magic number that opens one, and its name in messages."""

    MODEL = 20240326, "a model"
    DEBUG_STATE = 20240327, "a debug state"
    TOKENIZER = 20240328, "a tokenizer"
    TOKENS = 20240520, "a GPT-2 token file"
    EVALUATION = 20240522, "a multiple-choice evaluation file"
    STATE = 20240527, "a training state"
    LLAMA3_TOKENS = 20240801, "a Llama 3 token file"
    LLAMA3_MODEL = 20240803, "a Llama 3 model"

    def __init__(self, magic: int, title: str) -> None:
        self.magic = magic
        self.title = title


def kind_of(magic: int) -> FileKind | None:
    """The kind of file that a magic number opens; None if it is no file of llm.c's."""
    return next((kind for kind in FileKind if kind.magic == magic), None)


def read_header(path: Path, error: type[CupyGPTError] = CheckpointError) -> np.ndarray:
    """The 256 int32 of a file. Raises `error` if it cannot be read or is shorter than that."""
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as reason:
        raise error(
            f"{path}: could not be read ({reason.strerror or reason}). "
            f"Check the path and its permissions."
        ) from reason
    return parse_header(path, raw, error)


def parse_header(path: Path, raw: bytes, error: type[CupyGPTError] = CheckpointError) -> np.ndarray:
    """The 256 int32 that begin `raw`, the content of `path`. Raises `error` if it is shorter."""
    if len(raw) < HEADER_BYTES:
        raise error(
            f"{path}: {len(raw)} bytes, but the header alone has {HEADER_BYTES:,}. "
            f"The file is empty or cut short; make or copy it again."
        )
    return np.frombuffer(raw, "<i4", count=HEADER_INTS).astype(np.int32)


def check_kind(
    path: Path,
    header: np.ndarray,
    wanted: FileKind,
    error: type[CupyGPTError] = CheckpointError,
    advice: str = "",
) -> None:
    """Raise `error` unless the file is of the wanted kind: what it is instead, and the `advice`."""
    magic = int(header[0])
    if magic == wanted.magic:
        return
    kind = kind_of(magic)
    this_is = f"this is {kind.title}, not" if kind else "this is not"
    raise error(
        f"{path}: {this_is} {wanted.title} "
        f"(magic number {magic}, expected {wanted.magic}). {advice}".rstrip()
    )
