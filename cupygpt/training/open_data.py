"""The data of a run: its token files, and the tokenizer that made them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cupygpt.config import GPTConfig
from cupygpt.data.corpora import python_docs_tokens
from cupygpt.data.token_files import TokenShard, fingerprint, open_shards, write_shard
from cupygpt.data.tokenizer import Tokenizer, default_tokenizer_spec, load_tokenizer
from cupygpt.errors import ConfigError, TokenizerError
from cupygpt.flags.config import TrainConfig, flags_of

DEMO_TRAIN, DEMO_VAL = "python_docs_train.bin", "python_docs_val.bin"


@dataclass
class Data:
    """Token files and what is known of their tokens."""

    train: list[TokenShard]
    val: list[TokenShard]
    tokenizer: Tokenizer | None
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For the run's record: a changed file is noticed on resume."""
        return {
            "train": fingerprint(self.train),
            "val": fingerprint(self.val),
            "tokenizer": self.tokenizer.name if self.tokenizer else None,
        }


def open_data(config: TrainConfig, folder: Path) -> Data:
    """Open and check the token files; without -i the built-in corpus is written into `folder`."""
    if config.train_data is None:
        return _demo_data(config, folder)
    train = open_shards(config.train_data)
    val = open_shards(config.val_data) if config.val_data else []
    return Data(train, val, None)


def attach_tokenizer(config: TrainConfig, model: GPTConfig, data: Data) -> None:
    """Find the tokenizer for samples and bits per byte; note a missing one, refuse a wrong one."""
    if data.tokenizer is None:
        spec = config.tokenizer or default_tokenizer_spec(model.V)
        if spec is None:
            data.notes.append(
                f"no tokenizer known for a vocabulary of {model.V}: samples show ids "
                "(--tokenizer FILE)"
            )
            return
        try:
            data.tokenizer = load_tokenizer(spec)
        except TokenizerError as error:
            if config.tokenizer:
                raise
            data.notes.append(f"samples show ids: {error}")
            return
    if data.tokenizer.vocab_size != model.V:
        raise TokenizerError(
            f"tokenizer {data.tokenizer.name} has {data.tokenizer.vocab_size} ids, but the model's "
            f"vocabulary is {model.V}. "
            "Pass the model or the --tokenizer that the data was made with."
        )


def _demo_data(config: TrainConfig, folder: Path) -> Data:
    if config.val_data is not None:
        raise ConfigError(f"{flags_of('val_data')} needs {flags_of('train_data')}.")
    train_path, val_path = folder / DEMO_TRAIN, folder / DEMO_VAL
    tokenizer = load_tokenizer(config.tokenizer or "bytes")
    if not (train_path.exists() and val_path.exists()):
        train, val = python_docs_tokens(tokenizer=tokenizer)
        write_shard(train_path, train)
        write_shard(val_path, val)
    note = "demo on the documentation in this Python; pass -i and -j for your own data"
    return Data(open_shards(str(train_path)), open_shards(str(val_path)), tokenizer, [note])
