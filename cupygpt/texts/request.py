"""What can be asked of `prepare`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cupygpt.errors import ConfigError
from cupygpt.texts.own_vocabulary import check_own
from cupygpt.texts.published.sets import PARQUET, PUBLISHED, TEXT, TOKENS, Published
from cupygpt.texts.reading.opening import PACKINGS
from cupygpt.texts.writing.encode_blocks import MOST_WORKERS

TINYSHAKESPEARE = "tinyshakespeare"
PYTHON_DOCS = "python-docs"
FILE_PREFIXES = {TINYSHAKESPEARE: "tiny_shakespeare", PYTHON_DOCS: "python_docs"}
"""The built-in texts, and what their token files are called. published/sets.py has more."""

VAL_FRACTION = 0.1
"""Of a text of a megabyte that is enough for a loss that chance changes by a hundredth."""
SHARD_TOKENS = 10**8

ERRORS = ("strict", "replace")
"""What bytes that are no text may be: an error, or replaced."""


_FLAGS_OF_PUBLISHED = {
    TOKENS: (),
    TEXT: ("--errors", "--dedup"),
    PARQUET: ("--errors", "--dedup", "--val-fraction", "--hold-out", "--field"),
}
"""Flags for text files that a published data set of this kind takes too."""


@dataclass(frozen=True)
class Request:
    """What to prepare. Raises ConfigError for values that contradict each other or cannot work.

    `what`: one built-in text or published data set, or files, folders, glob patterns and `-` for
    standard input. `source` replaces the download, or `mirror` is the server it comes from; `files`
    training files of a data set are taken. `val` are files for validation; without them
    `val_fraction` is the share of the text for it, and `hold_out` one of METHODS. `field` names the
    text in records; `errors` is one of ERRORS; with `dedup` equal documents are taken once. With
    `split_at_endoftext` the text `<|endoftext|>` separates documents. With `headerless` the files
    hold token ids, as nanoGPT writes them. `workers` threads encode. None means the default.
    """

    what: Sequence[str]
    output: Path = Path()
    name: str | None = None
    tokenizer: str | None = None
    source: Path | None = None
    mirror: str | None = None
    files: int | None = None
    val: Sequence[str] = ()
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
        named = [what for what in self.what if what in FILE_PREFIXES or what in PUBLISHED]
        if named and len(self.what) > 1:
            raise ConfigError(
                f"{named[0]} is a data set and must be the only one; got {' '.join(self.what)}. If "
                f"you mean a file of that name, write ./{named[0]}."
            )
        self._check_flags_of_downloads()
        check_own(self.tokenizer, has_text=not self.headerless)
        fraction = self.val_fraction
        for flag, given in self._of_text_files().items():
            if given and self.built_in:
                raise ConfigError(f"{flag} is for text files; {self.built_in} has a fixed split.")
            if given and self.headerless and flag not in ("--val-fraction", "--headerless"):
                raise ConfigError(f"{flag} is for text; --headerless files hold token ids.")
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(f"--val-fraction {fraction}: must be at least 0 and below 1.")
        if self.val and (fraction is not None or self.hold_out is not None):
            raise ConfigError(
                "--val names all text for validation; leave --val-fraction and --hold-out out."
            )
        if not 2 <= self.shard_tokens < 2**31:
            raise ConfigError(f"--shard-tokens {self.shard_tokens}: must be from 2 to 2**31 - 1.")
        if self.workers is not None and not 1 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"--workers {self.workers}: must be from 1 to {MOST_WORKERS}.")
        if self.name is not None and not re.fullmatch(r"(?!-)[^/\\:*?\"<>|\0-\x1f]+", self.name):
            raise ConfigError(
                f"--name {self.name!r}: must be part of a file name, and not begin with a dash. "
                f"Use -o for folders."
            )

    def _check_flags_of_downloads(self) -> None:
        published, name = self.published, self.what[0]
        from_network = published is not None or self.built_in == TINYSHAKESPEARE
        for flag, given in (("--source", self.source), ("--mirror", self.mirror)):
            if given is not None and not from_network:
                raise ConfigError(
                    f"{flag} says where tinyshakespeare or a published data set comes from. For "
                    f"your own text give the files themselves: python -m cupygpt.prepare FILE"
                )
        if self.source is not None and self.mirror is not None:
            raise ConfigError("--source reads what is here, --mirror loads it; pass one of them.")
        if self.files is not None and (published is None or published.num_files == 1):
            several = [name for name, one in PUBLISHED.items() if one.num_files > 1]
            raise ConfigError(f"-n counts the training files of {', '.join(several)}.")
        if published is None:
            return
        refused = {
            flag: given
            for flag, given in self._of_text_files().items()
            if flag not in _FLAGS_OF_PUBLISHED[published.kind]
        }
        if published.kind == TOKENS:
            refused["--tokenizer"] = self.tokenizer not in (None, "gpt2")
            refused["--name"] = self.name is not None
            refused["--shard-tokens"] = self.shard_tokens != SHARD_TOKENS
        for flag in (flag for flag, given in refused.items() if given):
            raise ConfigError(
                f"{flag}: {name} is taken as it was published ({published.kind}). Leave {flag} out."
            )

    def _of_text_files(self) -> dict[str, bool]:
        """The flags that a built-in text has no use for, and whether they were given."""
        return {
            "--val": bool(self.val),
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
    def published(self) -> Published | None:
        """The published data set; None for anything else."""
        return PUBLISHED.get(self.what[0])

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
