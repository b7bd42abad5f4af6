"""Data sets that others have published, and what their files are called."""

from dataclasses import dataclass

TOKENS, TEXT, PARQUET = "GPT-2 tokens", "text", "parquet"

SHARD_BYTES = 200_001_024
"""A token file of 10**8 tokens."""


@dataclass(frozen=True)
class Published:
    """A data set in a `repository` of Hugging Face, with `num_files` training files.

    `train` makes their names from their numbers, which begin at `first`; `val` is the file for
    validation, if there is one. Sizes in bytes are approximate: a training file, the validation
    file, and the tokens that a training file becomes.
    """

    repository: str
    kind: str
    train: str
    num_files: int
    file_bytes: int
    first: int = 1
    usual: int | None = None
    """How many training files are taken if nothing is said; None for all."""
    val: str | None = None
    val_bytes: int = 0
    token_bytes: int = 0

    def names(self, count: int) -> tuple[list[str], list[str]]:
        """The names of the first `count` training files, and of those for validation."""
        train = [self.train.format(self.first + i) for i in range(count)]
        return train, [self.val] if self.val else []

    def url(self, host: str, name: str) -> str:
        """Where a file lies."""
        return f"{host.rstrip('/')}/datasets/{self.repository}/resolve/main/{name}"


PUBLISHED = {
    "fineweb": Published(
        "kjj0/fineweb10B-gpt2",
        TOKENS,
        "fineweb_train_{:06}.bin",
        num_files=103,
        file_bytes=SHARD_BYTES,
        usual=10,
        val="fineweb_val_000000.bin",
        val_bytes=SHARD_BYTES,
    ),
    "fineweb-edu": Published(
        "kjj0/finewebedu10B-gpt2",
        TOKENS,
        "finewebedu_train_{:06}.bin",
        num_files=99,
        file_bytes=SHARD_BYTES,
        usual=10,
        val="finewebedu_val_000000.bin",
        val_bytes=SHARD_BYTES,
    ),
    "tinystories": Published(
        "roneneldan/TinyStories",
        TEXT,
        "TinyStoriesV2-GPT4-train.txt",
        num_files=1,
        file_bytes=2_230_000_000,
        val="TinyStoriesV2-GPT4-valid.txt",
        val_bytes=22_500_000,
        token_bytes=1_100_000_000,
    ),
    "openwebtext": Published(
        "Skylion007/openwebtext",
        PARQUET,
        "plain_text/train-{:05}-of-00080.parquet",
        num_files=80,
        first=0,
        file_bytes=303_000_000,
        token_bytes=226_000_000,
    ),
}
