"""The first look at all documents: how many, how long, which are held out, which occur twice.

A second pass writes the tokens (write_tokens.py). What it must know of each document fits a byte.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cupygpt.data.token_record import NAMED_SOURCES
from cupygpt.texts.hold_out import HoldOut, Sizes, is_held_out
from cupygpt.texts.reading.documents import Documents, Piece
from cupygpt.texts.reading.duplicates import Duplicates

NAMED_FILES = 3
"""So many files are named in a remark."""

HELD_OUT, DROPPED = 1, 2
"""What `Look.marks` says of a document."""


@dataclass
class FileList:
    """Files of one kind: how many, and the names of the first ones."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """One more file."""
        self.count += 1
        if len(self.names) < NAMED_SOURCES:
            self.names.append(name)

    @classmethod
    def of(cls, names: Iterable[str]) -> "FileList":
        """A list of these files."""
        files = cls()
        for name in names:
            files.add(name)
        return files

    def __str__(self) -> str:
        named = self.names[:NAMED_FILES]
        more = f" and {self.count - len(named):,} more" if self.count > len(named) else ""
        return ", ".join(named) + more


@dataclass
class Look:
    """What the first pass over documents found.

    `sizes` are those of the documents that are kept; `dropped` counts the others. `marks` has a
    byte for each document: HELD_OUT if a hash of it chooses it for validation, DROPPED if it
    occurred before and is left out. `files` are those with text, `empty` those without, `again`
    those with the content of another file. `sha256` identifies the content of all.
    """

    sizes: Sizes
    dropped: int
    marks: bytearray
    files: FileList
    empty: FileList
    again: FileList
    sha256: str


def look_at(
    documents: Documents,
    fraction: float,
    *,
    for_validation: Collection[str] = (),
    spool: Path | None = None,
    show: Callable[[int], None] = lambda _: None,
) -> Look:
    """Read all documents once. `fraction` of them are marked for validation, or all of some files.

    If `spool` is given, a folder for a temporary file, the second and later ones of equal documents
    are dropped. `show` is told how many bytes of the files were read so far.
    Raises DataError for what cannot be read as text.
    """
    marks = bytearray()
    files, empty, again = FileList(), FileList(), FileList()
    known: set[bytes] = set()
    all_text = hashlib.sha256()
    text_bytes = longest = 0
    with Duplicates(spool) as duplicates:
        for name, pieces in zip(documents.files, documents.by_file(), strict=True):
            before = len(marks)
            of_file = hashlib.sha256()
            all_held_out = name in for_validation
            for digest, length in _hashed(pieces):
                of_file.update(digest)
                text_bytes += length
                longest = max(longest, length)
                held_out = all_held_out or is_held_out(digest, fraction)
                marks.append(HELD_OUT if held_out else 0)
                duplicates.add(digest, length)
                show(documents.position)
            show(documents.position)
            content = digest if len(marks) == before + 1 else of_file.digest()
            (files if len(marks) > before else empty).add(name)
            if len(marks) > before:
                all_text.update(content.hex().encode() + b"\0")
                if content[:16] in known:
                    again.add(name)
                known.add(content[:16])
        dropped = dropped_bytes = 0
        for number, length in duplicates.found():
            marks[number] |= DROPPED
            dropped, dropped_bytes = dropped + 1, dropped_bytes + length
    sizes = Sizes(len(marks) - dropped, text_bytes - dropped_bytes, longest)
    return Look(sizes, dropped, marks, files, empty, again, all_text.hexdigest())


def _hashed(pieces: Iterator[Piece]) -> Iterator[tuple[bytes, int]]:
    """The SHA-256 of each document's UTF-8 text, and its length in bytes."""
    digest, length = hashlib.sha256(), 0
    for piece in pieces:
        if piece is None:
            yield digest.digest(), length
            digest, length = hashlib.sha256(), 0
        else:
            raw = piece.encode()
            digest.update(raw)
            length += len(raw)


def kept_pieces(
    documents: Documents, look: Look, hold_out: HoldOut
) -> Iterator[tuple[Piece, bool]]:
    """All pieces of the documents that are kept; whether they are of one held out as a whole."""
    number = 0
    for piece in documents.pieces():
        # A file that grows meanwhile is an error, as soon as it was read.
        mark = look.marks[number] if number < len(look.marks) else DROPPED
        number += piece is None
        if not mark & DROPPED:
            yield piece, hold_out.whole and bool(mark & HELD_OUT)
