"""What can be asked of `prepare`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cupygpt.errors import ConfigError
from cupygpt.texts.own_vocabulary import check_own
from cupygpt.texts.reading.opening import PACKINGS
from cupygpt.texts.writing.encode_blocks import MOST_WORKERS

TINYSHAKESPEARE = "tinyshakespeare"
PYTHON_DOCS = "python-docs"
FILE_PREFIXES = {TINYSHAKESPEARE: "tiny_shakespeare", PYTHON_DOCS: "python_docs"}
"""The built-in texts, and what their token files are called."""

VAL_FRACTION = 0.1
"""Of a text of a megabyte that is enough for a loss that chance changes by a hundredth."""
SHARD_TOKENS = 10**8

ERRORS = ("strict", "replace")
"""What bytes that are no text may be: an error, or replaced."""


@dataclass(frozen=True)
class Request:
    """What to prepare. Raises ConfigError for values that contradict each other or cannot work.

    `what`: one built-in text, or files, folders, glob patterns and `-` for standard input. `source`
    replaces the download of tinyshakespeare. `val_fraction` is the share of the text for
    validation, and `hold_out` one of METHODS. `field` names the text in records; `errors` is one of
    ERRORS; with `dedup` equal documents are taken once. With `split_at_endoftext` the text
    `<|endoftext|>` separates documents. With `headerless` the files hold token ids, as nanoGPT
    writes them. `workers` threads encode. None means the default.
    """

    what: Sequence[str]
    output: Path = Path()
    name: str | None = None
    tokenizer: str | None = None
    source: Path | None = None
    val_fraction: float | None = None
    hold_out: str | None = None
    field: str | None = None
    errors: str | None = None
    dedup: bool = False
    split_at_endoftext: bool = False
    headerless: bool = False
    shard_tokens: int = SHARD_TOKENS
    workers: int | None = None

    def __post_init__(self) -> None:
        built_in = [what for what in self.what if what in FILE_PREFIXES]
        if built_in and len(self.what) > 1:
            raise ConfigError(
                f"{built_in[0]} is a built-in text and must be the only one; got "
                f"{' '.join(self.what)}. If you mean a file of that name, write ./{built_in[0]}."
            )
        if self.source and built_in != [TINYSHAKESPEARE]:
            raise ConfigError(
                "--source names the text of tinyshakespeare. For your own text give the files "
                "themselves: python -m cupygpt.prepare FILE"
            )
        check_own(self.tokenizer, has_text=not self.headerless)
        fraction = self.val_fraction
        for flag, given in self._of_text_files().items():
            if given and built_in:
                raise ConfigError(f"{flag} is for text files; {built_in[0]} has a fixed split.")
            if given and self.headerless and flag not in ("--val-fraction", "--headerless"):
                raise ConfigError(f"{flag} is for text; --headerless files hold token ids.")
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(f"--val-fraction {fraction}: must be at least 0 and below 1.")
        if not 2 <= self.shard_tokens < 2**31:
            raise ConfigError(f"--shard-tokens {self.shard_tokens}: must be from 2 to 2**31 - 1.")
        if self.workers is not None and not 1 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"--workers {self.workers}: must be from 1 to {MOST_WORKERS}.")
        if self.name is not None and not re.fullmatch(r"(?!-)[^/\\:*?\"<>|\0-\x1f]+", self.name):
            raise ConfigError(
                f"--name {self.name!r}: must be part of a file name, and not begin with a dash. "
                f"Use -o for folders."
            )

    def _of_text_files(self) -> dict[str, bool]:
        """The flags that a built-in text has no use for, and whether they were given."""
        return {
            "--val-fraction": self.val_fraction is not None,
            "--hold-out": self.hold_out is not None,
            "--field": self.field is not None,
            "--errors": self.errors is not None,
            "--dedup": self.dedup,
            "--split-at-endoftext": self.split_at_endoftext,
            "--headerless": self.headerless,
        }

    @property
    def built_in(self) -> str | None:
        """The name of the built-in text; None for text files."""
        return self.what[0] if self.what[0] in FILE_PREFIXES else None

    @property
    def file_prefix(self) -> str:
        """The first part of the names of the token files: `name`, or one that `what` suggests."""
        if self.name is not None or self.built_in:
            return self.name or FILE_PREFIXES[self.what[0]]
        path = Path(self.what[0])
        if path.suffix.lower() in PACKINGS:
            path = path.with_suffix("")
        stem = path.stem if len(self.what) == 1 else ""
        return stem if re.fullmatch(r"\w[\w.-]*", stem) else "text"
