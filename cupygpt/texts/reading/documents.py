"""The documents of all files, in order, in pieces of bounded size; read as often as needed."""

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TypeAlias

from cupygpt.data.vocabulary import END_OF_TEXT
from cupygpt.errors import DataError
from cupygpt.texts.reading.decoding import BLOCK_BYTES, decoded, unix_line_ends
from cupygpt.texts.reading.find import STDIN, is_parquet, is_records
from cupygpt.texts.reading.json_lines import json_texts
from cupygpt.texts.reading.opening import (
    ByteSource,
    open_file,
    packing_by_content,
    packing_of,
)
from cupygpt.texts.reading.parquet import parquet_texts
from cupygpt.texts.reading.reading import Reading, Tally

SEPARATOR = END_OF_TEXT.decode()

STDIN_NAME = "standard input"

MOST_CHARACTERS = 2**22
"""So much text is kept while a place is looked for at which it can be cut."""

LONG_RECORD = 2**20
"""A record of more characters is divided."""

WORDS_WINDOW = 2**13
_LETTER = r"[^\W\d_]"
_BETWEEN_WORDS = tuple(
    re.compile(rule)
    for rule in (
        rf"{_LETTER}(?=\n{_LETTER})",
        rf"{_LETTER}(?= {_LETTER})",
        rf"\S\n(?={_LETTER})",
    )
)
"""Where all usual patterns split, searched in the last so many characters: before a line feed or a
space between letters; in text without these, after a line feed before a letter."""

_SPACE = re.compile(r"\S (?=\S)")

Piece: TypeAlias = str | None
"""A part of a document, not empty; None ends the document."""


class Documents:
    """The documents of `files`: of text each file is one, of jsonl and parquet each record.

    `stdin` holds what the file `-` stands for. Reading costs memory for one piece (a block of
    text, or one record), whatever the size of the files.

    `position` says, while pieces are read, how many of all `total_bytes` of the files were read.
    `tally` is what was met in the pass that was started last.
    """

    def __init__(
        self,
        files: Sequence[str],
        how: Reading | None = None,
        stdin: IO[bytes] | None = None,
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.files = files
        self.tally = Tally()
        self.position = 0
        self._how = how or Reading()
        self._stdin, self._block_bytes = stdin, block_bytes
        self._sizes, self._times = array("q"), array("q")
        for file in files:
            size, time = self._stamp(file)
            self._sizes.append(size)
            self._times.append(time)
        self.total_bytes = sum(self._sizes)

    def pieces(self) -> Iterator[Piece]:
        """All documents, piece by piece. Raises DataError for what cannot be read as text.

        Every pass gives the same pieces. A file that has changed since these documents were made
        is an error.
        """
        for pieces in self.by_file():
            yield from pieces

    def by_file(self) -> Iterator[Iterator[Piece]]:
        """As `pieces`, but the documents of each file by themselves; read them in this order."""
        self.tally = Tally()
        self.position = 0
        for number in range(len(self.files)):
            yield self._of_file(number)

    def _of_file(self, number: int) -> Iterator[Piece]:
        file, before = self.files[number], self.position
        if file == STDIN and self._stdin is not None:
            self._stdin.seek(0)
            packing = packing_by_content(self._stdin.read(4))
            self._stdin.seek(0)
            yield from self._of_stream(self._stdin, STDIN_NAME, number, packing)
        else:
            with open_file(file) as stream:
                yield from self._of_stream(stream, file, number, packing_of(file))
        self._check_unchanged(number)
        self.position = before + self._sizes[number]

    def _of_stream(
        self, stream: IO[bytes], name: str, number: int, packing: str | None
    ) -> Iterator[Piece]:
        before, how = self.position, self._how
        records: Iterable[str]
        if is_parquet(name):

            def advance(count: int) -> None:
                self.position = before + count

            size = self._sizes[number]
            records = parquet_texts(stream, name, size, how, self.tally, advance)
        else:
            source = ByteSource(name, stream, packing)
            blocks = self._counted(decoded(source, how, self.tally, self._block_bytes), source)
            if not is_records(name, how.field) and not (name == STDIN_NAME and how.field):
                blocks = whole_lines(unix_line_ends(blocks, self.tally))
                yield from text_documents(blocks, how, self.tally)
                return
            records = json_texts(blocks, name, how, self.tally)
        for text in records:
            self.tally.endoftexts += text.count(SEPARATOR)
            if len(text) > LONG_RECORD:
                yield from whole_lines(_slices(text, self._block_bytes))
            else:
                yield text
            yield None

    def _counted(self, blocks: Iterator[str], source: ByteSource) -> Iterator[str]:
        before = self.position
        for block in blocks:
            self.position = before + source.position()
            yield block

    def _stamp(self, file: str) -> tuple[int, int]:
        """Size and time of the last change; those of a file that is not there are -1."""
        try:
            if file == STDIN and self._stdin is not None:
                status = os.fstat(self._stdin.fileno())
                return status.st_size, 0
            status = os.stat(file)  # noqa: PTH116 (fast)
        except OSError:
            return 0, -1  # whoever opens it says why
        return status.st_size, status.st_mtime_ns

    def _check_unchanged(self, number: int) -> None:
        size, time = self._stamp(self.files[number])
        old = self._sizes[number]
        if self._times[number] != -1 and (size, time) != (old, self._times[number]):
            what = f"{old:,} bytes, then {size:,}" if size != old else "its content is new"
            gone = time == -1
            raise DataError(
                f"{self.files[number]}: {'vanished' if gone else 'changed'} while it was read"
                + ("" if gone else f" ({what})")
                + ". Prepare a copy that nothing writes to."
            )


def text_documents(blocks: Iterator[str], how: Reading, tally: Tally) -> Iterator[Piece]:
    """The documents of one file of text, whose `blocks` end where tokens end.

    Without `how.split` it is one document, or none without any visible character. With it, the text
    `<|endoftext|>` separates documents and belongs to none of them, nor does a line end right after
    it; parts without any visible character are left out, and counted.
    """
    if how.split:
        yield from _separated_documents(blocks, tally)
        return
    blank = ""  # white space at the beginning; so much of it that it must not be kept is text
    inside = False
    for block in blocks:
        tally.endoftexts += block.count(SEPARATOR)
        if not inside and block.isspace() and len(blank) + len(block) < MOST_CHARACTERS // 4:
            blank += block
            continue
        if blank:
            yield blank
            blank = ""
        yield block
        inside = True
    if inside:
        yield None


def _separated_documents(blocks: Iterator[str], tally: Tally) -> Iterator[Piece]:
    blank = ""  # white space at the beginning of a document
    inside = after_separator = False
    for block in blocks:
        for i, part in enumerate(block.split(SEPARATOR)):
            if i > 0:
                tally.endoftexts += 1
                tally.empty += after_separator and not inside
                yield from [None] if inside else []
                blank, inside, after_separator = "", False, True
            if inside:
                yield from [part] if part else []
                continue
            blank += part
            if part and not part.isspace():
                yield blank.removeprefix("\n") if after_separator else blank
                inside = True
    if inside:
        yield None


def whole_lines(blocks: Iterator[str]) -> Iterator[str]:
    """The same text in blocks that can be tokenised one by one.

    The tokens of the blocks, joined, are those of the whole text, because a block ends only where
    GPT-2's pattern always splits: before a line feed, or in a text without lines before a space,
    with a character that is no white space on its other side. Other patterns keep a full stop and
    the line feed behind it together, so the first choice is a place between two words, where they
    split too. Only a text without any such place in MOST_CHARACTERS characters is cut there.
    """
    pending = ""
    for text in blocks:
        pending += text
        cut = _last_cut(pending)
        if cut > 0:
            yield pending[:cut]
            pending = pending[cut:]
    if pending:
        yield pending


def _slices(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def _last_cut(text: str) -> int:
    """Where `text` is to be cut; 0 or less if it has to grow first."""
    end = len(text.rstrip())
    for place in _BETWEEN_WORDS:
        if found := list(place.finditer(text, max(0, end - WORDS_WINDOW), end)):
            return found[-1].end()
    cut = text.rfind("\n", 0, end)
    while cut > 0 and text[cut + 1].isspace():
        cut = text.rfind("\n", 0, cut)
    if cut <= 0 and len(text) > MOST_CHARACTERS // 4:
        spaces = (found.start() + 1 for found in _SPACE.finditer(text, max(0, end - 2**16), end))
        cut = max(spaces, default=0)
    return len(text) if cut <= 0 and len(text) > MOST_CHARACTERS else cut
