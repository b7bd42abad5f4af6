r"""Tokenizer files: tiktoken's rank files and llm.c's tokenizer.bin, read and validated.

A rank file does not say how text is split into pieces, over which no token reaches. The file beside
it does, `NAME.tiktoken.json` beside `NAME.tiktoken`: `{"split_pattern": "..."}`. Without one the
pattern is GPT-2's.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cupygpt.config import GPT2_VOCAB, MAX_VOCAB
from cupygpt.errors import TokenizerError
from cupygpt.files import (
    HEADER_BYTES,
    FileKind,
    atomic_write,
    check_can_end,
    check_kind,
    kind_of,
    parse_header,
    remove_file,
)
from cupygpt.strict_json import quoted, read_object

MOST_BYTES = 1 << 26
"""GPT-2's files have a few megabytes; those of large vocabularies up to twenty."""

LONGEST_TOKEN = 1024
"""Bytes. A longer token would be a passage learnt by heart."""

# GPT-2's pattern in the form without possessive quantifiers (openai/gpt-2, src/encoder.py), but for
# \s++$, which takes the blanks at the end of a text without stepping back, however many they are.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s++$|\s+(?!\S)|\s+"

_PUBLISHED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_FORMS = {
    GPT2_SPLIT,
    _PUBLISHED,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
}
"""How GPT-2's pattern is written elsewhere (openai/gpt-2, tiktoken)."""

_BOUNDED = r"\{\d+(?:,\d*)?\}"

KEY = "split_pattern"
MOST_PATTERN_BYTES = 1 << 16
MOST_CHARACTERS = 4096

PROBE_S = 2.0
_PROBE = "".join(
    [
        "It's 1234 o'clock; we'll see...\n\n\tx = f(a_b, 'c')  # 3.14\r\n",
        "naïve ÀÉ e\u0301 日本語のテキスト、한국어 текст العربية हिन्दी ไทย ",
        "👩\u200d👩\u200d👧 🇫🇷 \0\x1b\u00a0\u3000\u2028",
        *(char * 1000 for char in "aZ0 \n-é中"),
        "a " * 500,
    ]
)
"""Text of all kinds, and runs of one character, on which patterns step back most."""


def read(path: Path) -> bytes:
    """The whole file. Raises TokenizerError if it cannot be read, or is too large for one."""
    check_can_end(path, TokenizerError)
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise TokenizerError(
                f"tokenizer {path}: {size:,} bytes, but a tokenizer has at most {MOST_BYTES:,}. Is "
                f"this another file?"
            )
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
    _check_ranks(path, ranks)
    return ranks


def _check_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    num_ids = max(ranks.values()) + 1
    if len(set(ranks.values())) < len(ranks):
        [(twice, _)] = Counter(ranks.values()).most_common(1)
        same = ", ".join(map(repr, [token for token in ranks if ranks[token] == twice][:2]))
        raise TokenizerError(
            f"{path}: two tokens have the same rank {twice:,}: {same}. The file is damaged."
        )
    if num_ids + 1 > MAX_VOCAB:
        raise TokenizerError(
            f"{path}: {num_ids + 1:,} ids with end of text, but {MAX_VOCAB:,} are the "
            f"most that can be used here. Use a smaller vocabulary, such as gpt2."
        )
    if len(ranks) <= num_ids // 2:
        raise TokenizerError(
            f"{path}: {len(ranks):,} tokens with ranks up to {num_ids - 1:,}: most ranks between "
            f"them are missing. The file is incomplete."
        )


def _parse_rank_line(path: Path, number: int, line: bytes) -> tuple[bytes, int]:
    try:
        encoded, rank = line.split()
        token = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        token, rank = b"", b""
    if not token or not rank.isdigit() or len(rank) > len(str(2**63)):
        raise TokenizerError(
            f"{path}: line {number:,} is not a base64 token, a space and its rank "
            f"({line[:40]!r}). Is this a .tiktoken file?"
        )
    if len(token) > LONGEST_TOKEN:
        raise TokenizerError(
            f"{path}: line {number:,} holds a token of {len(token):,} bytes; {LONGEST_TOKEN:,} are "
            f"the most. The file is damaged."
        )
    return token, int(rank)


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    """The content of a `.tiktoken` file."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())


def copy_tokenizer(file: Path, copy: Path) -> list[Path]:
    """Copy the file of a tokenizer and its split pattern; returns the paths of the copies.

    What is there already with the same content is left as it is. Raises TokenizerError if the file
    cannot be read, RunError if a copy cannot be written.
    """
    contents = {copy: read(file)}
    if pattern_path(file).exists():
        contents[pattern_path(copy)] = read(pattern_path(file))
    else:
        remove_file(pattern_path(copy))
    for path, content in contents.items():
        if not path.is_file() or path.read_bytes() != content:
            with atomic_write(path) as new:
                new.write(content)
    return list(contents)


def pattern_path(tokenizer: Path) -> Path:
    """Where the pattern of a `.tiktoken` file lies."""
    return tokenizer.with_name(tokenizer.name + ".json")


def read_pattern(tokenizer: Path) -> str | None:
    """The pattern in the file beside a `.tiktoken` file; None if there is no such file.

    Raises TokenizerError for a file that is damaged, and for a pattern that cannot be used.
    """
    path = pattern_path(tokenizer)
    if not path.exists():
        return None
    values = read_object(path, MOST_PATTERN_BYTES, TokenizerError)
    pattern = values.get(KEY)
    if type(pattern) is not str or len(values) > 1:
        raise TokenizerError(
            f"{path}: expected one text, {KEY}, the pattern that splits text before "
            f"{tokenizer.name} encodes it; found {_names(values)}. Without this file the pattern "
            f"is GPT-2's."
        )
    return usable_pattern(pattern, str(path))


def pattern_file(pattern: str) -> bytes:
    """The content of the file beside a `.tiktoken` file."""
    pattern = _PUBLISHED if pattern == GPT2_SPLIT else pattern
    return json.dumps({KEY: pattern}, indent=1).encode() + b"\n"


def usable_pattern(pattern: str, where: str) -> str:
    """`pattern`, GPT-2's in the one form that is used here, and `{1,3}+` without a + if it can be.

    Raises TokenizerError, which names the place `where` it stands, for a pattern that is damaged,
    takes too long, or leaves out parts of a text.
    """
    import regex

    if pattern in _GPT2_FORMS:
        return GPT2_SPLIT
    pattern = re.sub(f"({_BOUNDED})\\+(?=\\||$)", r"\1", pattern)
    if len(pattern) > MOST_CHARACTERS:
        raise _unusable(where, f"its {len(pattern):,} characters are over {MOST_CHARACTERS:,}")
    try:
        found = regex.finditer(pattern, _PROBE, timeout=PROBE_S)
        reached = _covered(match.span() for match in found)
    except TimeoutError as error:
        raise _unusable(where, f"it needs over {PROBE_S:g} s for a short text") from error
    except (regex.error, RecursionError, MemoryError, OverflowError) as error:
        raise _unusable(where, f"it does not compile ({error})") from error
    if reached < len(_PROBE):
        raise _unusable(
            where,
            f"it does not match all of a text: {quoted(_PROBE[reached : reached + 1])} is left out "
            f"or matched as nothing",
        )
    return pattern


def is_portable(pattern: str) -> bool:
    """Whether a pattern means the same to tiktoken and to Hugging Face's tokenizers.

    tiktoken's `{1,3}+` never gives back what it took; the other takes `{1,3}` again and again. At
    the end of an alternative nothing is ever given back, so there the + can be left out.
    """
    return not re.search(rf"{_BOUNDED}\+", pattern)


def _covered(spans: Iterable[tuple[int, int]]) -> int:
    """How far the pieces follow each other without a gap or an empty one."""
    reached = 0
    for start, end in spans:
        if start != reached or end == start:
            break
        reached = end
    return reached


def _names(values: dict[str, Any]) -> str:
    return ", ".join(map(quoted, values)) or "nothing"


def _unusable(where: str, why: str) -> TokenizerError:
    return TokenizerError(f"{where}: the split pattern cannot be used: {why}.")
