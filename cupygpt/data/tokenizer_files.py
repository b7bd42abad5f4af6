"""Tokenizer files: tiktoken's rank files and llm.c's tokenizer.bin, read and validated."""

import base64
import binascii
from pathlib import Path

from cupygpt.config import GPT2_VOCAB, MAX_VOCAB
from cupygpt.errors import TokenizerError
from cupygpt.files import HEADER_BYTES, FileKind, check_can_end, check_kind, kind_of, parse_header

# GPT-2's pattern in the form without possessive quantifiers (openai/gpt-2, src/encoder.py), but for
# \s++$, which takes the blanks at the end of a text without stepping back, however many they are.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s++$|\s+(?!\S)|\s+"


def read(path: Path) -> bytes:
    """The whole file. Raises TokenizerError if it cannot be read."""
    check_can_end(path, TokenizerError)
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"tokenizer {path}: could not be read ({error.strerror or error}). "
            f"A tokenizer is gpt2, bytes, or the path of a .tiktoken file, a tokenizer.json of "
            f"Hugging Face, or llm.c's tokenizer.bin."
        ) from error


def is_llmc(content: bytes) -> bool:
    """Whether the file starts with the magic number of llm.c's tokenizer.bin."""
    return kind_of(int.from_bytes(content[:4], "little")) is FileKind.TOKENIZER


def parse_llmc(path: Path, content: bytes) -> tuple[list[bytes], int]:
    """The bytes of each id, and the id of end of text, of llm.c's tokenizer.bin.

    Layout (llm.c llmc/tokenizer.h): 256 int32: magic number, version 1 or 2, V, end of text (in
    version 2 only; version 1 has V 50257 and end of text 50256). V times a length byte, 1 to 255,
    and that many bytes follow. Raises TokenizerError unless the file is exactly that.
    """
    advice = "llm.c's train_gpt2.py writes a tokenizer as gpt2_tokenizer.bin."
    header = parse_header(path, content, TokenizerError)
    check_kind(path, header, FileKind.TOKENIZER, TokenizerError, advice)
    version, V, eot = (int(word) for word in header[1:4])
    if version not in (1, 2):
        raise TokenizerError(f"{path}: tokenizer of version {version}; 1 and 2 are known.")
    if version == 1:
        eot = GPT2_VOCAB - 1
        if V != GPT2_VOCAB:
            raise TokenizerError(
                f"{path}: {V:,} ids in a version 1 tokenizer, which has {GPT2_VOCAB:,}. "
                f"The file is damaged."
            )
    if not 1 <= V <= MAX_VOCAB or not 0 <= eot < V:
        raise TokenizerError(
            f"{path}: {V:,} ids with end of text {eot}; expected 1 to {MAX_VOCAB:,} ids and an end "
            f"of text among them. The file is damaged, or for another model."
        )
    return _parse_lengths(path, content, V), eot


def _parse_lengths(path: Path, content: bytes, V: int) -> list[bytes]:
    table = []
    at = HEADER_BYTES
    for token in range(V):
        length = content[at] if at < len(content) else 0
        if length == 0 or at + 1 + length > len(content):
            reason = "has length 0" if at < len(content) and length == 0 else "is cut short"
            raise TokenizerError(
                f"{path}: token {token:,} of {V:,}, at byte {at:,}, {reason}. Copy the file again."
            )
        table.append(content[at + 1 : at + 1 + length])
        at += 1 + length
    if at != len(content):
        raise TokenizerError(
            f"{path}: {len(content):,} bytes, but its {V:,} tokens end at byte {at:,}. "
            f"Copy the file again."
        )
    return table


def parse_ranks(path: Path, content: bytes) -> dict[bytes, int]:
    """The rank of each token in a tiktoken rank file: lines of base64, a space, a number.

    Raises TokenizerError for anything else, a repeated token or rank, a missing single byte
    (every text must be encodable), or ranks that leave no room for end of text below 2**20.
    """
    # tiktoken.load.load_tiktoken_bpe reads such files too, but accepts repeated tokens and broken
    # base64. It also caches a copy under the name of the path: it does not see that a file changed.
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        token, rank = _parse_rank_line(path, number, line)
        if token in ranks:
            raise TokenizerError(f"{path}: line {number:,} repeats the token {token!r}.")
        ranks[token] = rank
    missing = sum(bytes([i]) not in ranks for i in range(256))
    if missing:
        raise TokenizerError(
            f"{path}: {len(ranks):,} tokens, but {missing} of the 256 single bytes are not among "
            f"them, so not every text could be encoded. The file is incomplete."
        )
    if len(set(ranks.values())) < len(ranks):
        raise TokenizerError(f"{path}: two tokens have the same rank. The file is damaged.")
    if max(ranks.values()) + 2 > MAX_VOCAB:
        raise TokenizerError(
            f"{path}: {max(ranks.values()) + 2:,} ids with end of text, but {MAX_VOCAB:,} are the "
            f"most that can be used here. Use a smaller vocabulary, such as gpt2."
        )
    return ranks


def _parse_rank_line(path: Path, number: int, line: bytes) -> tuple[bytes, int]:
    try:
        encoded, rank = line.split()
        token = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        token, rank = b"", b""
    if not token or not rank.isdigit():
        raise TokenizerError(
            f"{path}: line {number:,} is not a base64 token, a space and its rank "
            f"({line[:40]!r}). Is this a .tiktoken file?"
        )
    return token, int(rank)
