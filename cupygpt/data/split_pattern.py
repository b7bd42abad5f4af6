r"""The pattern that splits text into pieces before byte-pair encoding; no token reaches over two.

A `.tiktoken` file holds no pattern. The file beside it does, `NAME.tiktoken.json` beside
`NAME.tiktoken`: `{"split_pattern": "..."}`. Without one the pattern is GPT-2's.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cupygpt.errors import TokenizerError
from cupygpt.strict_json import quoted, read_object

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

KEY = "split_pattern"
MOST_BYTES = 1 << 16
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
    values = read_object(path, MOST_BYTES, TokenizerError)
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
    """`pattern`, GPT-2's in the one form that is used here.

    Raises TokenizerError, which names the place `where` it stands, for a pattern that is damaged,
    takes too long, or leaves out parts of a text.
    """
    import regex

    if pattern in _GPT2_FORMS:
        return GPT2_SPLIT
    if len(pattern) > MOST_CHARACTERS:
        raise _unusable(where, f"its {len(pattern):,} characters are over {MOST_CHARACTERS:,}")
    try:
        found = regex.finditer(pattern, _PROBE, timeout=PROBE_S)
        reached = _covered(match.span() for match in found)
    except TimeoutError as error:
        raise _unusable(where, f"it needs over {PROBE_S:.0f} s for a short text") from error
    except (regex.error, RecursionError, MemoryError, OverflowError) as error:
        raise _unusable(where, f"it does not compile ({error})") from error
    if reached < len(_PROBE):
        raise _unusable(
            where,
            f"it does not match all of a text: {quoted(_PROBE[reached : reached + 1])} is left out "
            f"or matched as nothing",
        )
    return pattern


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
