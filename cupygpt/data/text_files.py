"""Text files of any size, read in pieces that can be tokenised one by one."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from cupygpt.errors import DataError

BLOCK_BYTES = 2**22


def read_text(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[str]:
    """The UTF-8 text of a file, without a byte order mark, in pieces of about `block_bytes`.

    The tokens of the pieces, joined, are those of the whole text, because a piece ends only before
    a line feed with a non-space character after it: there GPT-2's pattern always splits. Line ends
    are kept as they are.
    Raises DataError if the file cannot be read, is empty, or is not UTF-8 (naming the offset).
    """
    pending = ""
    empty = True
    for text in _decoded(path, block_bytes):
        empty = False
        pending += text
        cut = _last_cut(pending)
        if cut > 0:
            yield pending[:cut]
            pending = pending[cut:]
    if empty:
        raise DataError(f"{path}: the file is empty. Leave it out, or give one with text.")
    if pending:
        yield pending


def _decoded(path: Path, block_bytes: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = start = 0
    try:
        with path.open("rb") as file:
            while True:
                block = file.read(block_bytes)
                start = offset - len(decoder.getstate()[0])  # where the decoder's bytes begin
                text = decoder.decode(block, final=not block)
                if offset == 0:
                    text = text.removeprefix("\ufeff")
                if text:
                    yield text
                if not block:
                    return
                offset += len(block)
    except OSError as error:
        raise DataError(
            f"{path}: could not be read ({error.strerror or error}). Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text: byte {error.object[error.start]:#04x} at offset "
            f"{start + error.start:,}. Save it as UTF-8, or convert it (iconv -t UTF-8)."
        ) from error


def _last_cut(text: str) -> int:
    """Index of the last line feed with a non-space character after it; 0 or less if none."""
    cut = text.rfind("\n", 0, len(text) - 1)
    while cut > 0 and text[cut + 1].isspace():
        cut = text.rfind("\n", 0, cut)
    return cut
