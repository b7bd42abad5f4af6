"""Bytes to text: byte order marks, Windows line ends, and bytes that are no text."""

import codecs
import re
from collections.abc import Iterator

from cupygpt.errors import DataError
from cupygpt.texts.reading.opening import ByteSource
from cupygpt.texts.reading.reading import Reading, Tally

BLOCK_BYTES = 2**18

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte order marks and their encodings; one of UTF-32 begins with one of UTF-16."""

_SURROGATES = re.compile("[\ud800-\udfff]")


def decoded(
    source: ByteSource, how: Reading, tally: Tally, block_bytes: int = BLOCK_BYTES
) -> Iterator[str]:
    """The text of a file in blocks: UTF-8, or what its byte order mark says.

    Raises DataError that names the offset of the first byte that is no text, unless
    `how.replace`. For a packed file it is the offset in the unpacked data.
    """
    block = source.read(max(block_bytes, 4))
    mark = next((mark for mark in MARKS if block.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    if mark:
        tally.marks[encoding.upper()] += 1
    block = block[len(mark) :] or source.read(block_bytes)
    offset = len(mark)
    lenient = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    decoder = codecs.getincrementaldecoder(encoding)(lenient if how.replace else "strict")
    while True:
        start = offset - len(decoder.getstate()[0])  # where the decoder's bytes begin
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            if not how.replace:
                raise _no_text(source, error, start, encoding) from error
            tally.replaced += 1
            text = "\ufffd"  # half a character at the end of UTF-16
        if how.replace:
            text = without_surrogates(text, tally)
        if "\0" in text:
            tally.nul[source.name] += 1
        if text:
            yield text
        if not block:
            return
        offset += len(block)
        block = source.read(block_bytes)


def unix_line_ends(blocks: Iterator[str], tally: Tally) -> Iterator[str]:
    """Blocks of text with a line feed for each Windows line end; these are counted."""
    held = ""
    for block in blocks:
        text = held + block
        held = "\r" if text.endswith("\r") else ""
        text = unix_text(text[: len(text) - len(held)], tally)
        if text:
            yield text
    if held:
        yield held


def unix_text(text: str, tally: Tally) -> str:
    """A whole text with a line feed for each Windows line end; these are counted."""
    count = text.count("\r\n") if "\r" in text else 0
    if not count:
        return text
    tally.line_ends += count
    return text.replace("\r\n", "\n")


def without_surrogates(text: str, tally: Tally) -> str:
    """`text` with U+FFFD for each half of a surrogate pair, which UTF-8 cannot hold."""
    if text.isascii() or not _SURROGATES.search(text):
        return text
    text, count = _SURROGATES.subn("\ufffd", text)
    tally.replaced += count
    return text


def _no_text(source: ByteSource, error: UnicodeDecodeError, start: int, encoding: str) -> DataError:
    kind = encoding.upper()
    advice = (
        "Save it as UTF-8, or convert it (iconv -t UTF-8); --errors replace reads over such bytes."
    )
    if source.name.endswith(".bin"):
        advice = "If it holds token ids without a header, as nanoGPT's do, add --headerless."
    where = " of the unpacked data" if source.packing else ""
    return DataError(
        f"{source.name}: not {kind} text: byte {error.object[error.start]:#04x} at offset "
        f"{start + error.start:,}{where}. {advice}"
    )
