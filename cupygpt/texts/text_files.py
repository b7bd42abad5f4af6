"""Text files of any size, read in pieces that can be tokenised one by one."""

import codecs
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cupygpt.data.vocabulary import END_OF_TEXT
from cupygpt.errors import DataError

BLOCK_BYTES = 2**22

SEPARATOR = END_OF_TEXT.decode()


@dataclass(frozen=True)
class TextFacts:
    """What one look at a text file tells: sizes in bytes of UTF-8, without a byte order mark.

    `endoftexts` counts how often the text `<|endoftext|>` occurs; `sha256` is of the whole text.
    """

    path: Path
    sha256: str
    text_bytes: int
    documents: int
    longest_document: int
    endoftexts: int


def read_text(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[str]:
    """The UTF-8 text of a file, without a byte order mark, in pieces of about `block_bytes`.

    The tokens of the pieces, joined, are those of the whole text, because a piece ends only before
    a line feed with a non-space character after it: there GPT-2's pattern always splits. Line ends
    are kept as they are. An empty file gives no piece.
    Raises DataError if the file cannot be read or is not UTF-8 (naming the offset).
    """
    pending = ""
    for text in _decoded(path, block_bytes):
        pending += text
        cut = _last_cut(pending)
        if cut > 0:
            yield pending[:cut]
            pending = pending[cut:]
    if pending:
        yield pending


def read_documents(
    path: Path, *, split: bool, block_bytes: int = BLOCK_BYTES
) -> Iterator[str | None]:
    """The documents of a text file in pieces as `read_text` gives them; None ends a document.

    Without `split` the file is one document. With it, the text `<|endoftext|>` separates documents
    and belongs to none of them, nor does a line end right after it; documents without any visible
    character are left out.
    """
    if not split:
        yield from read_text(path, block_bytes)
        yield None
        return
    blank: list[str] = []  # white space at the beginning of a document
    inside = after_separator = False
    for piece in read_text(path, block_bytes):
        for i, part in enumerate(piece.split(SEPARATOR)):
            if i > 0:
                if inside:
                    yield None
                blank, inside, after_separator = [], False, True
            if inside:
                if part:
                    yield part
                continue
            blank.append(part)
            if part and not part.isspace():
                text = "".join(blank)
                yield re.sub(r"\A\r?\n", "", text) if after_separator else text
                inside = True
    if inside:
        yield None


def look_at_text(path: Path, *, split: bool) -> TextFacts:
    """Read a text file once, as `read_documents` divides it.

    Raises DataError if it cannot be read or is not UTF-8.
    """
    digest = hashlib.sha256()
    total = endoftexts = 0
    for piece in read_text(path):
        raw = piece.encode()
        digest.update(raw)
        total += len(raw)
        endoftexts += piece.count(SEPARATOR)
    if not split:
        return TextFacts(path, digest.hexdigest(), total, min(total, 1), total, endoftexts)
    documents = longest = length = 0
    for part in read_documents(path, split=True):
        if part is None:
            documents, longest, length = documents + 1, max(longest, length), 0
        else:
            length += len(part.encode())
    return TextFacts(path, digest.hexdigest(), total, documents, longest, endoftexts)


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
        advice = "Save it as UTF-8, or convert it (iconv -t UTF-8)."
        if path.suffix == ".bin":
            advice = "If it holds token ids without a header, as nanoGPT's do, add --headerless."
        raise DataError(
            f"{path}: not UTF-8 text: byte {error.object[error.start]:#04x} at offset "
            f"{start + error.start:,}. {advice}"
        ) from error


def _last_cut(text: str) -> int:
    """Index of the last line feed with a non-space character after it; 0 or less if none."""
    cut = text.rfind("\n", 0, len(text) - 1)
    while cut > 0 and text[cut + 1].isspace():
        cut = text.rfind("\n", 0, cut)
    return cut
