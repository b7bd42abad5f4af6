"""Token shards: llm.c's GPT-2 token files, written atomically, validated and memory-mapped.

A file is a header of 256 little-endian int32 (magic 20240520, version 1, number of tokens n, the
rest 0) followed by n uint16 token ids, and nothing else. Format: llm.c llmc/dataloader.h and
dev/data/data_common.py.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cupygpt.atomic_file import atomic_write
from cupygpt.data.paths import matching_files
from cupygpt.errors import DataError

Tokens: TypeAlias = npt.NDArray[np.uint16]

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
TOKEN_DTYPE = np.dtype("<u2")
MAX_TOKENS = 2**31 - 1  # The count is a signed 32-bit int in the header.

LLAMA3_MAGIC = 20240801
NOT_TOKENS = {
    20240326: "a model",
    20240327: "a debug state",
    20240328: "a tokenizer",
    20240522: "a multiple-choice evaluation file",
    20240527: "a training state",
    20240803: "a Llama-3 model",
}

# A mapping holds a file descriptor; many systems allow a process 256 (macOS) or 1024 (Linux).
MAX_MAPPED = 128

SCAN_BUDGET_TOKENS = 2**28
SCAN_BLOCK_TOKENS = 2**22

FULL_HASH_BYTES = 2**25
SAMPLED_BLOCKS = 64
SAMPLED_BLOCK_BYTES = 2**16


@dataclass(frozen=True, eq=False)
class TokenShard:
    """One validated token file: `path`, `num_tokens`, and `tokens`, mapped when first read."""

    path: Path
    num_tokens: int
    _mapped: Callable[[Path, int], Tokens]

    @property
    def tokens(self) -> Tokens:
        """(num_tokens,) uint16, read-only, backed by the file.

        At most 128 files of one `open_shards` call are mapped at a time; an older one is mapped
        again when it is next read. Raises DataError if the file has changed its size meanwhile.
        """
        return self._mapped(self.path, self.num_tokens)


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[Callable[[npt.ArrayLike], None]]:
    """Write a token file piece by piece: yields `append(tokens)`; the file appears at the end.

    `tokens` is 1-d, integers in [0, 65535]. An exception inside the block leaves the old file, or
    none. Raises DataError for ids outside that range, fewer than 2 or more than 2**31 - 1 tokens;
    RunError if the file cannot be written.
    """
    count = 0
    with atomic_write(path) as file:
        file.write(bytes(HEADER_BYTES))

        def append(tokens: npt.ArrayLike) -> None:
            nonlocal count
            piece = _as_token_ids(path, tokens)
            count += piece.size
            if count > MAX_TOKENS:
                raise DataError(
                    f"{path}: a token file holds at most {MAX_TOKENS:,} tokens. "
                    f"Write several, with a smaller --shard-tokens."
                )
            file.write(piece.tobytes())

        yield append
        if count < 2:
            raise DataError(
                f"{path}: {count} token(s) to write; a token file needs at least 2 "
                f"(one to read, one to predict). Give more text."
            )
        file.seek(0)
        file.write(np.array([MAGIC, VERSION, count], dtype="<i4").tobytes())


def write_shard(path: Path, tokens: npt.ArrayLike) -> None:
    """Write `tokens` (n,), integers in [0, 65535], n >= 2, as one token file, atomically.

    Raises DataError for values that a token file cannot hold, RunError if writing fails.
    """
    with shard_writer(path) as append:
        append(tokens)


def open_shards(pattern: str) -> list[TokenShard]:
    """All token files that match `pattern`, a path or a glob, sorted by byte value as in llm.c.

    A path that exists is taken literally, even if it holds `*`, `?` or `[`. Every file is checked:
    magic, version, at least 2 tokens, exact size. Raises DataError at the first that fails, and
    when nothing matches.
    """
    hint = "Check the path, or make token files from text with: python -m cupygpt.prepare FILE"
    paths = matching_files(pattern, kind="token files", example="*.bin", hint=hint)
    mapped = functools.lru_cache(maxsize=MAX_MAPPED)(_map_tokens)
    return [TokenShard(path, _checked_num_tokens(path), mapped) for path in paths]


def check_ids(shards: Sequence[TokenShard], V: int) -> None:
    """Raise DataError, naming file, position and id, if a token id is not below V.

    Reads all tokens of data sets up to 2**28 tokens (512 MiB, under a second from memory). Larger
    ones get an equal share of that for the beginning of each shard, which finds data made with
    another tokenizer; the loader checks every batch it hands out besides.
    """
    if V >= 2**16:
        return
    share = SCAN_BUDGET_TOKENS // max(len(shards), 1)
    whole = sum(shard.num_tokens for shard in shards) <= SCAN_BUDGET_TOKENS
    for shard in shards:
        last = shard.num_tokens if whole else min(shard.num_tokens, share)
        for start in range(0, last, SCAN_BLOCK_TOKENS):
            block = shard.tokens[start : min(start + SCAN_BLOCK_TOKENS, last)]
            if int(block.max()) >= V:
                offset = int(np.argmax(block >= V))
                raise id_error(shard, start + offset, int(block[offset]), V)


def id_error(shard: TokenShard, position: int, token: int, V: int) -> DataError:
    """The error for a token id at `position` of `shard` that is not below the vocabulary size V."""
    return DataError(
        f"{shard.path}: token {position:,} is id {token}, but the model's vocabulary has {V:,} ids "
        f"(0 to {V - 1}). Prepare the data with the model's tokenizer, or use a model with at "
        f"least {token + 1:,} ids."
    )


def fingerprint(shards: Iterable[TokenShard]) -> list[dict[str, Any]]:
    """What identifies the data, in order, ready for JSON: name, tokens, sha256, hashed.

    `hashed` is "all" and `sha256` that of the whole file up to 32 MiB. Larger files are "sampled":
    the hash covers the size in bytes (8 bytes, little-endian) and 64 blocks of 64 KiB spread
    evenly, the header in the first and the file's end in the last, so that a data set of any size
    is identified within seconds.
    """
    return [_fingerprint(shard) for shard in shards]


def _fingerprint(shard: TokenShard) -> dict[str, Any]:
    size = HEADER_BYTES + TOKEN_DTYPE.itemsize * shard.num_tokens
    digest = hashlib.sha256()
    with _reading(shard.path), shard.path.open("rb") as file:
        if size <= FULL_HASH_BYTES:
            while block := file.read(2**20):
                digest.update(block)
        else:
            digest.update(size.to_bytes(8, "little"))
            last_start = size - SAMPLED_BLOCK_BYTES
            for i in range(SAMPLED_BLOCKS):
                file.seek(last_start * i // (SAMPLED_BLOCKS - 1))
                digest.update(file.read(SAMPLED_BLOCK_BYTES))
    return {
        "name": shard.path.name,
        "tokens": shard.num_tokens,
        "sha256": digest.hexdigest(),
        "hashed": "all" if size <= FULL_HASH_BYTES else "sampled",
    }


def _as_token_ids(path: Path, tokens: npt.ArrayLike) -> Tokens:
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
        raise DataError(
            f"{path}: tokens must be a one-dimensional array of integers, "
            f"not {ids.dtype} of shape {ids.shape}."
        )
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= np.iinfo(np.uint16).max:
        raise DataError(
            f"{path}: token ids from {ids.min()} to {ids.max()}; a token file holds 0 to 65535. "
            f"Use a tokenizer with at most 65536 ids."
        )
    return ids.astype(TOKEN_DTYPE)


def _checked_num_tokens(path: Path) -> int:
    with _reading(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise DataError(
            f"{path}: {len(raw)} bytes, shorter than the header of a token file "
            f"({HEADER_BYTES} bytes). The file is empty or was cut off; make or copy it again."
        )
    magic, version, count = (int(word) for word in np.frombuffer(raw, "<i4", count=3))
    _check_kind(path, magic, version)
    if count < 2:
        raise DataError(
            f"{path}: its header counts {count} token(s); at least 2 are needed "
            f"(one to read, one to predict). Prepare it from more text."
        )
    expected = HEADER_BYTES + TOKEN_DTYPE.itemsize * count
    if size != expected:
        raise DataError(
            f"{path}: {size:,} bytes, but its header counts {count:,} tokens, which take "
            f"{expected:,} bytes. The file was cut off or damaged; make or copy it again."
        )
    return count


def _check_kind(path: Path, magic: int, version: int) -> None:
    if magic == LLAMA3_MAGIC:
        raise DataError(
            f"{path}: a Llama-3 token file (magic {magic}, version {version}, 4 bytes per token). "
            f"Token ids must fit 2 bytes here; prepare the text again with a GPT-2 tokenizer."
        )
    if magic != MAGIC:
        kind = NOT_TOKENS.get(magic)
        found = f"{kind} file of llm.c" if kind else "not a token file"
        raise DataError(
            f"{path}: {found} (magic {magic}, expected {MAGIC}). If this is text, turn it into "
            f"tokens first: python -m cupygpt.prepare {path.name}"
        )
    if version != VERSION:
        raise DataError(
            f"{path}: token file of version {version}; only version {VERSION} is known. "
            f"Make it again: python -m cupygpt.prepare"
        )


def _map_tokens(path: Path, num_tokens: int) -> Tokens:
    with _reading(path):
        size = path.stat().st_size
        if size != HEADER_BYTES + TOKEN_DTYPE.itemsize * num_tokens:
            raise DataError(
                f"{path}: the file changed during the run ({size:,} bytes, "
                f"{num_tokens:,} tokens when it was opened). Restore it and resume the run."
            )
        return np.memmap(path, TOKEN_DTYPE, mode="r", offset=HEADER_BYTES, shape=(num_tokens,))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: could not be read ({error.strerror or error}). "
            f"Check the path and its permissions."
        ) from error
