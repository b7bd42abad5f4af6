"""Tokenizer files: tiktoken's rank files and llm.c's tokenizer.bin, read and validated."""

import base64
import binascii
from pathlib import Path

import numpy as np

from cupygpt.errors import TokenizerError

MAX_IDS = 2**16  # Token files hold uint16.

# GPT-2's pattern, in the form without possessive quantifiers (openai/gpt-2, src/encoder.py).
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

LLMC_MAGIC = 20240328
LLMC_HEADER_BYTES = 1024
LLMC_VERSION1_VOCAB = 50257


def read(path: Path) -> bytes:
    """The whole file. Raises TokenizerError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"tokenizer {path}: could not be read ({error.strerror or error}). "
            f"A tokenizer is gpt2, bytes, or the path of a .tiktoken or llm.c tokenizer.bin file."
        ) from error


def is_llmc(content: bytes) -> bool:
    """Whether the file starts with the magic number of llm.c's tokenizer.bin."""
    return content[:4] == LLMC_MAGIC.to_bytes(4, "little")


def parse_llmc(path: Path, content: bytes) -> tuple[list[bytes], int]:
    """The bytes of each id, and the id of end of text, of llm.c's tokenizer.bin.

    Layout (llm.c llmc/tokenizer.h): 256 int32: magic 20240328, version 1 or 2, V, end of text
    (version 2; 50256 in version 1, whose V is 50257); then V times a length byte, 1 to 255, and
    that many bytes. Raises TokenizerError unless the file is exactly that.
    """
    if len(content) < LLMC_HEADER_BYTES or not is_llmc(content):
        raise TokenizerError(
            f"{path}: not a tokenizer of llm.c ({len(content):,} bytes, magic number "
            f"{int.from_bytes(content[:4], 'little')}, expected {LLMC_MAGIC}). "
            f"llm.c's train_gpt2.py writes one as gpt2_tokenizer.bin."
        )
    version, V, eot = (int(word) for word in np.frombuffer(content, "<i4", count=4)[1:])
    if version not in (1, 2):
        raise TokenizerError(f"{path}: tokenizer of version {version}; 1 and 2 are known.")
    if version == 1:
        eot = LLMC_VERSION1_VOCAB - 1
        if V != LLMC_VERSION1_VOCAB:
            raise TokenizerError(
                f"{path}: {V:,} ids in a version 1 tokenizer, which has 50,257. It is damaged."
            )
    if not 1 <= V <= MAX_IDS or not 0 <= eot < V:
        raise TokenizerError(
            f"{path}: {V:,} ids with end of text {eot}; expected 1 to {MAX_IDS:,} ids and an end "
            f"of text among them. The file is damaged, or for another model."
        )
    return _parse_lengths(path, content, V), eot


def _parse_lengths(path: Path, content: bytes, V: int) -> list[bytes]:
    table = []
    at = LLMC_HEADER_BYTES
    for token in range(V):
        length = content[at] if at < len(content) else 0
        if length == 0 or at + 1 + length > len(content):
            reason = "has length 0" if at < len(content) and length == 0 else "is cut off"
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
    """Token bytes to rank, of a tiktoken rank file: lines of base64, a space, a number.

    Raises TokenizerError for anything else, a repeated token or rank, a missing single byte
    (every text must be encodable), or ranks that leave no room for end of text below 65536.
    """
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
    if max(ranks.values()) + 2 > MAX_IDS:
        raise TokenizerError(
            f"{path}: {max(ranks.values()) + 2:,} ids with end of text, but token files hold "
            f"{MAX_IDS:,}. Use a smaller vocabulary, such as gpt2."
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
