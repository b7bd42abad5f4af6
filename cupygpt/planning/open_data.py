"""The data of a run: its token files, and the tokenizer that made them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cupygpt.config import BYTES_VOCAB, GPT2_VOCAB, GPTConfig
from cupygpt.data import tokenizer_files
from cupygpt.data.token_files import (
    WAYS_TO_HASH,
    TokenShard,
    fingerprint,
    largest_id,
    open_shards,
    ways_to_hash,
)
from cupygpt.data.token_record import (
    RecordedTokenizer,
    TokenRecord,
    check_tokenizer,
    load_recorded_tokenizer,
    put_in_place,
    read_token_record,
    write_token_records,
)
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import (
    Tokenizer,
    default_tokenizer_spec,
    load_tokenizer,
    load_tokenizer_for,
)
from cupygpt.errors import ConfigError, TokenizerError
from cupygpt.exchange.source import WeightSource
from cupygpt.exchange.tokenizer_of import sha256_of
from cupygpt.flags.config import TrainConfig, flags_of
from cupygpt.run_folder.record import TOKENIZER_COPY
from cupygpt.texts.corpora import python_docs_origin, python_docs_tokens
from cupygpt.texts.python_docs import python_docs_text

DEMO_NAME = "python_docs"
"""The first part of the names of the demo's token files."""

LARGE_VOCAB = 1024
"""Of a vocabulary above this, a text that uses no id of the upper half was made for another."""


@dataclass
class Data:
    """Token files and what is known of their tokens."""

    train: list[TokenShard]
    val: list[TokenShard]
    tokenizer: Tokenizer | None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    made_with: TokenRecord | None = None
    """What the token records beside the files, training then validation, say; None without any."""

    def record(self) -> dict[str, Any]:
        """For the run's record: a changed file is noticed on resume."""
        return {**self.files(), **self.tokenizer_record()}

    def files(self, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What identifies the token files, hashed as those `recorded` were: an older run's."""
        ways = ways_to_hash([*self.train, *self.val])
        cut = len(self.train)
        parts = {"train": (self.train, ways[:cut]), "val": (self.val, ways[cut:])}
        return {
            part: fingerprint(shards, _recorded_ways((recorded or {}).get(part), now))
            for part, (shards, now) in parts.items()
        }

    def tokenizer_record(self) -> dict[str, Any]:
        """What identifies the tokenizer, as far as it is known: its content, not its name."""
        recorded = self.made_with.tokenizer if self.made_with else None
        known = self.tokenizer or recorded
        return {
            "tokenizer": self.tokenizer.name if self.tokenizer else None,
            "tokenizer_sha256": known.sha256 if known else None,
        }


def open_data(config: TrainConfig, folder: Path, *, new: bool) -> Data:
    """Open and check the token files; without -i those of the built-in corpus in the run `folder`.

    `new` says that a run begins here: tokens that an earlier run left in the folder may come from
    another tokenizer or text, so they are written anew. A resumed run, and a rank other than 0,
    uses the files that are there.
    """
    if config.train_data is None:
        return _demo_data(config, folder, new=new)
    train = open_shards(config.train_data)
    val = open_shards(config.val_data) if config.val_data else []
    data = Data(train, val, None, made_with=read_token_record([*train, *val]))
    data.warnings += _doubts_on_files(data)
    return data


def _recorded_ways(files: Any, now: list[str]) -> list[str]:
    """How the files of a record were hashed; as `now` where it does not say so."""
    try:
        ways = [file["hashed"] for file in files]
        return [way if way in WAYS_TO_HASH else new for way, new in zip(ways, now, strict=True)]
    except (TypeError, KeyError, ValueError):
        return now


def _doubts_on_files(data: Data) -> list[str]:
    """What is there twice: files in training and validation, texts in both, files in training."""
    doubts = []
    files = data.files()
    train: dict[str, TokenShard] = {}
    again = []
    for shard, file in zip(data.train, files["train"], strict=True):
        first = train.setdefault(file["sha256"], shard)
        if first is not shard:
            again.append(f"{shard.path} has the same tokens as {first.path}")
    if again:
        doubts.append(
            f"{again[0]}{_and_more(again)}: training sees these tokens more often than others"
        )
    shared = [
        f"{shard.path} has the same tokens as {train[sha256].path}"
        for shard, file in zip(data.val, files["val"], strict=True)
        if (sha256 := file["sha256"]) in train
    ]
    if shared:
        doubts.append(
            f"{shared[0]}{_and_more(shared)}: the model is trained on what validates it, so the "
            f"validation loss is too low. Leave it out of -i"
        )
    return doubts + ([] if shared else _doubts_on_texts(data))


def _doubts_on_texts(data: Data) -> list[str]:
    """Training and validation files made from the same texts, which were split in two ways."""
    if data.made_with is None:
        return []
    files = data.made_with.files
    trained = {
        file.origin.sources_sha256: (shard, file.origin.split)
        for shard, file in zip(data.train, files[: len(data.train)], strict=True)
        if file is not None
    }
    for shard, file in zip(data.val, files[len(data.train) :], strict=True):
        if file is None or file.origin.sources_sha256 not in trained:
            continue
        other, split = trained[file.origin.sources_sha256]
        if split != file.origin.split:
            return [
                f"{shard.path} and {other.path} come from the same text, with other parts held out "
                f"({file.origin.split}; {split}): the model may be trained on what validates it. "
                f"Prepare both in one run"
            ]
    return []


def _and_more(found: list[str]) -> str:
    return f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""


def vocabulary(config: TrainConfig, data: Data) -> int:
    """V of the tokenizer that made the data; GPT-2's if neither the files nor the flags tell."""
    if data.tokenizer is not None:
        return data.tokenizer.vocab_size
    if data.made_with is not None:
        return data.made_with.tokenizer.vocab_size
    if config.tokenizer in (None, "gpt2"):
        return GPT2_VOCAB
    return load_tokenizer(config.tokenizer).vocab_size


def attach_tokenizer(
    config: TrainConfig,
    model: GPTConfig,
    data: Data,
    source: WeightSource | None = None,
    *,
    is_needed: bool = True,
) -> None:
    """Find the tokenizer for samples and bits per byte; note a missing one, refuse a wrong one.

    A wrong one is another than the data was made with, or one that the model was not made for, or
    not trained with, as far as its `source` says. One that the flags name may be missing only if it
    is not needed.
    """
    if data.made_with is not None:
        _check_source("the data's", data.made_with.tokenizer, source, is_demo=config.is_demo)
        _check_model("the data's", data.made_with.tokenizer, model)
    _doubt_ids(model, data)
    try:
        data.tokenizer = data.tokenizer or _find_tokenizer(config, model, data, source)
    except TokenizerError as error:
        if config.tokenizer and is_needed:
            raise
        data.notes.append(f"samples show ids: {error}")
    if data.tokenizer is not None:
        if data.made_with is not None:
            check_tokenizer(data.tokenizer, data.made_with, [*data.train, *data.val])
        _check_source("the", data.tokenizer, source, is_demo=config.is_demo)
        _check_model("the", data.tokenizer, model)


def attach_tokenizer_of_run(
    config: TrainConfig,
    model: GPTConfig,
    data: Data,
    folder: Path,
    recorded: Mapping[str, Any],
    *,
    is_asked_for: bool,
) -> None:
    """Find the tokenizer of a resumed run, which needs it only to show text.

    The run's own copy in `folder` comes first, unless --tokenizer `is_asked_for` now. A tokenizer
    that cannot be loaded is noted. Raises TokenizerError if its content is not the `recorded` one.
    """
    copy = folder / TOKENIZER_COPY
    if copy.is_file() and not is_asked_for:
        config = replace(config, tokenizer=str(copy))
    attach_tokenizer(config, model, data, is_needed=is_asked_for)
    now, then = data.tokenizer_record()["tokenizer_sha256"], recorded.get("tokenizer_sha256")
    if None not in (now, then) and now != then:
        name = data.tokenizer.name if data.tokenizer else "of the data"
        raise TokenizerError(
            f"the tokenizer {name} is not the one that this run was started with: its content is "
            f"another one. Name the right file with --tokenizer, or bring it back."
        )


def copy_tokenizer_to(folder: Path, data: Data) -> None:
    """Keep a copy of a tokenizer that came from a file, so that the run can be moved."""
    if data.tokenizer is None or data.tokenizer.file is None:
        return
    copy = folder / TOKENIZER_COPY
    if data.tokenizer.file != copy:
        tokenizer_files.copy_tokenizer(data.tokenizer.file, copy)


def _find_tokenizer(
    config: TrainConfig, model: GPTConfig, data: Data, source: WeightSource | None
) -> Tokenizer | None:
    """The tokenizer that the flags, the data, the model or else its vocabulary name."""
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    if data.made_with is not None:
        return load_recorded_tokenizer(data.made_with.tokenizer)
    spec = source.tokenizer if source else None
    if source is None or source.vocabulary is None:  # else that is known, and no guess is needed
        spec = spec or default_tokenizer_spec(model.V)
    if spec is not None:
        return load_tokenizer_for(model.V, spec)
    data.notes.append(
        f"no tokenizer known for a vocabulary of {model.V}: samples show ids (--tokenizer FILE)"
    )
    return None


def _check_source(
    whose: str,
    tokenizer: Tokenizer | RecordedTokenizer,
    source: WeightSource | None,
    *,
    is_demo: bool,
) -> None:
    """Raise TokenizerError if the model is known to be trained with another tokenizer."""
    known = None if source is None else sha256_of(source)
    if source is None or known in (None, tokenizer.sha256):
        return
    named = source.tokenizer or "its own"
    how = f"prepare --tokenizer {named}" if source.tokenizer else "convert writes it as one file"
    data = "This is the demo's text; name token files of yours with -i. " if is_demo else ""
    raise TokenizerError(
        f"{whose} tokenizer {tokenizer.name} ({tokenizer.vocab_size:,} ids) is not the one that "
        f"{source.origin} was trained with ({named}): the same ids mean other texts there. {data}"
        f"Prepare a text with the model's tokenizer ({how}), or leave out -e."
    )


def _check_model(whose: str, tokenizer: Tokenizer | RecordedTokenizer, model: GPTConfig) -> None:
    if tokenizer.vocab_size != model.V:
        raise TokenizerError(
            f"{whose} tokenizer {tokenizer.name} has {tokenizer.vocab_size:,} ids, but the model's "
            f"vocabulary has {model.V:,}. Use a model of {tokenizer.vocab_size:,} ids (without -e "
            f"one is made for the data), or the data and --tokenizer that belong to this model."
        )


def _doubt_ids(model: GPTConfig, data: Data) -> None:
    """Warn if token files without a record hold only small ids of a large vocabulary."""
    files = data.made_with.files if data.made_with else [None] * len(data.train + data.val)
    unknown = {
        shard.path for shard, file in zip(data.train + data.val, files, strict=True) if not file
    }
    for part in (data.train, data.val):
        shards = [shard for shard in part if shard.path in unknown]
        if not shards or model.V <= LARGE_VOCAB:
            continue
        largest = largest_id(shards)
        if largest >= model.V // 2:
            continue
        if largest < BYTES_VOCAB:
            found = f"all token ids are below {BYTES_VOCAB}"
            advice = (
                f"is it bytes? Then leave out -e or name a model of {BYTES_VOCAB} ids, and pass "
                f"--tokenizer bytes"
            )
        else:
            found = f"the largest token id is {largest:,}"
            advice = "was it made with another tokenizer? Name it with --tokenizer"
        data.warnings.append(
            f"{shards[0].path}: {found}, but the model has {model.V:,} ids: {advice}"
        )
        return


def _demo_data(config: TrainConfig, folder: Path, *, new: bool) -> Data:
    if config.val_data is not None:
        raise ConfigError(f"{flags_of('val_data')} needs {flags_of('train_data')}.")
    paths = {part: folder / f"{DEMO_NAME}_{part}.bin" for part in ("train", "val")}
    if new or not all(path.exists() for path in paths.values()):
        _write_demo_data(config, folder, paths)
    train, val = (open_shards(str(path)) for path in paths.values())
    made_with = read_token_record([*train, *val])
    # Older runs have no token records.
    tokenizer = None if made_with else load_tokenizer(config.tokenizer or "bytes")
    note = "demo on the documentation in this Python; pass -i and -j for your own data"
    return Data(train, val, tokenizer, [note], made_with=made_with)


def _write_demo_data(config: TrainConfig, folder: Path, paths: dict[str, Path]) -> None:
    docs = python_docs_text()
    tokenizer = load_tokenizer(config.tokenizer or "bytes")
    for path, tokens in zip(paths.values(), python_docs_tokens(docs, tokenizer), strict=True):
        write_shard(path, tokens)
    parts = {part: [(path, path)] for part, path in paths.items()}
    origin = python_docs_origin(docs)
    put_in_place(write_token_records(folder, DEMO_NAME, parts, tokenizer, origin))
