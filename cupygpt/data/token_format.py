"""The two kinds of llm.c's token files: ids of 2 bytes, and of 4 bytes for large vocabularies.

A file is a header of 256 little-endian int32 (magic number, version, number of tokens n, the rest
0) followed by n token ids, and nothing else. GPT-2's files hold uint16, those of Llama 3 uint32.
Format: llm.c llmc/dataloader.h, dev/data/data_common.py and train_llama3.py.
"""

import codecs
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.console.paste import shell_command
from cupygpt.errors import DataError
from cupygpt.files import FileKind, check_kind, kind_of, read_header


@dataclass(frozen=True)
class TokenFormat:
    """One of the two kinds: what its header says, and how an id is stored."""

    kind: FileKind
    version: int
    dtype: np.dtype

    @property
    def id_bytes(self) -> int:
        """The bytes of an id."""
        return self.dtype.itemsize

    @property
    def num_ids(self) -> int:
        """How many different ids it can hold."""
        return int(np.iinfo(self.dtype).max) + 1


TWO_BYTES = TokenFormat(FileKind.TOKENS, 1, np.dtype("<u2"))
FOUR_BYTES = TokenFormat(FileKind.LLAMA3_TOKENS, 7, np.dtype("<u4"))


def format_for(V: int) -> TokenFormat:
    """How the tokens of a vocabulary of V ids are stored: in 2 bytes, if they fit."""
    return TWO_BYTES if TWO_BYTES.num_ids >= V else FOUR_BYTES


def read_format(path: Path) -> tuple[TokenFormat, int]:
    """The kind of a token file, and how many tokens its header counts.

    Raises DataError for any other file, with what to do instead.
    """
    header = read_header(path, DataError)
    magic, version, count = (int(word) for word in header[:3])
    kind = kind_of(magic)
    found = FOUR_BYTES if kind is FOUR_BYTES.kind else TWO_BYTES
    if kind is not found.kind:
        check_kind(path, header, TWO_BYTES.kind, DataError, _advice(path, header, kind))
    if version != found.version:
        raise DataError(
            f"{path}: token file of version {version}; only version {found.version} is known. "
            f"Make it again: python -m cupygpt.prepare"
        )
    return found, count


def _advice(path: Path, header: np.ndarray, kind: FileKind | None) -> str:
    if kind is not None:
        return "Make token files from text with python -m cupygpt.prepare; -e takes a model."
    prepare = ["python", "-m", "cupygpt.prepare", str(path)]
    if _may_be_ids(header):
        return (
            f"If it holds token ids without a header, as nanoGPT's files do, give it one: "
            f"{shell_command([*prepare, '--headerless'])}"
        )
    return f"If this is text, turn it into tokens first: {shell_command(prepare)}"


def _may_be_ids(header: np.ndarray) -> bool:
    """Whether the beginning of a file is no text, so that it may be token ids without a header."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(header.astype("<i4").tobytes())
    except UnicodeDecodeError:
        return True
    return "\0" in text
