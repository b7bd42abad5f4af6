"""How texts are to be read, and what was met while they were read."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """How to read texts.

    `field` names the text in records (jsonl, parquet); None finds it. With `split` the text
    `<|endoftext|>` separates documents, in files of text. With `replace`, bytes that are not UTF-8
    become U+FFFD; without, they are an error.
    """

    field: str | None = None
    split: bool = False
    replace: bool = False


@dataclass
class Tally:
    """What was met on the way through all files, and is worth a remark.

    `line_ends` of Windows became line feeds; `marks` are the files that began with a byte order
    mark, by encoding. `replaced` counts bytes, or halves of surrogate pairs, that became U+FFFD.
    `empty` counts records and parts without a visible character, which are no documents.
    `endoftexts` counts the text `<|endoftext|>`. `fields` are the files by the field that was read.
    `nul` counts the blocks with NUL characters, by file.
    """

    line_ends: int = 0
    replaced: int = 0
    empty: int = 0
    endoftexts: int = 0
    marks: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    nul: Counter[str] = field(default_factory=Counter)
