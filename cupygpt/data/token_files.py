"""Token files (shards): validated, memory-mapped and read in rows.

token_format.py says what they hold; token_writer.py writes them.

A row is T + 1 consecutive tokens of one shard, which are T inputs, and the same tokens shifted by
one as targets. The rows of all shards are numbered through.
"""

import contextlib
import functools
import glob
import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_format import TokenFormat, read_format
from cupygpt.errors import DataError
from cupygpt.files import HEADER_BYTES, check_can_end, user_path

Tokens: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
"""uint16, or uint32 from a file of 4-byte ids."""
Ids: TypeAlias = npt.NDArray[np.int32]
Counts: TypeAlias = npt.NDArray[np.int64]

MAX_MAPPED = 128
"""A mapping holds a file descriptor; many systems allow a process 256 (macOS) or 1024 (Linux)."""

LARGE_FILE_BYTES = 2**30
"""Of a file that may not fit into memory, the system shall not read megabytes around each row."""

SCAN_BUDGET_TOKENS = 2**26
SCAN_BLOCK_TOKENS = 2**22

FULL_HASH_BYTES = 2**25
SAMPLED_BLOCK_BYTES = 2**16
MOST_HASHED_BYTES = 2**29
"""A run reads at most about so much to know its data by their hashes: half a second's work."""

ALL, SAMPLED, ENDS = "all", "sampled", "ends"
WAYS_TO_HASH = {ALL: None, SAMPLED: 64, ENDS: 2}
"""How a token file is hashed: all of it, or so many blocks. Records name the way."""


@dataclass(frozen=True, eq=False)
class TokenShard:
    """One validated token file: `path`, `num_tokens`, and `tokens`, mapped when first read."""

    path: Path
    num_tokens: int
    format: TokenFormat
    _mapped: Callable[[Path, int, TokenFormat], Tokens]
    _hashes: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return _file_bytes(self.num_tokens, self.format)

    @property
    def tokens(self) -> Tokens:
        """(num_tokens,) uint16 or uint32, read-only, backed by the file.

        At most 128 files of one `open_shards` call are mapped at a time; an older one is mapped
        again when it is next read. Raises DataError if the size of the file has changed.
        """
        return self._mapped(self.path, self.num_tokens, self.format)

    def sha256(self, hashed: str) -> str:
        """The SHA-256 of the whole file, or of samples of it; `hashed` is one of WAYS_TO_HASH.

        Samples are the size in bytes (8 bytes, little-endian) and blocks of 64 KiB: 64 of them,
        spread evenly from the header to the end of the file, or the first and the last one.
        """
        if hashed not in self._hashes:
            self._hashes[hashed] = self._hash(WAYS_TO_HASH[hashed])
        return self._hashes[hashed]

    def _hash(self, num_blocks: int | None) -> str:
        size = self.num_bytes
        digest = hashlib.sha256()
        with reading(self.path), self.path.open("rb") as file:
            if num_blocks is None:
                while block := file.read(2**20):
                    digest.update(block)
            else:
                digest.update(size.to_bytes(8, "little"))
                last_start = max(size - SAMPLED_BLOCK_BYTES, 0)
                for i in range(num_blocks):
                    file.seek(last_start * i // (num_blocks - 1))
                    digest.update(file.read(SAMPLED_BLOCK_BYTES))
        return digest.hexdigest()


def open_shards(pattern: str) -> list[TokenShard]:
    """All token files that match `pattern`, a path or a glob, sorted by byte value as in llm.c.

    A path that exists is taken literally, even if it holds `*`, `?` or `[`. The records beside
    token files do not count as matches. Every file is checked: magic, version, at least 2 tokens,
    exact size. Raises DataError at the first that fails, and when nothing matches.
    """
    hint = "Check the path, or make token files from text with: python -m cupygpt.prepare FILE"
    found = matching_files(pattern, kind="token files", example="*.bin", hint=hint)
    records = {record_path(path) for path in found}
    paths = [path for path in found if path not in records]
    mapped = functools.lru_cache(maxsize=MAX_MAPPED)(_map_tokens)
    return [TokenShard(path, *_checked(path), mapped) for path in paths]


def record_path(path: Path) -> Path:
    """Where the record of the token file `path` lies (token_record.py)."""
    return path.with_name(path.name + ".json")


def num_tokens(shards: Iterable[TokenShard]) -> int:
    """The tokens of all shards."""
    return sum(shard.num_tokens for shard in shards)


def longest_row(shards: Iterable[TokenShard]) -> int:
    """The largest T of which at least one row of T + 1 tokens fits a shard."""
    return max(shard.num_tokens for shard in shards) - 1


def matching_files(pattern: str, *, kind: str, example: str, hint: str) -> list[Path]:
    """The file called `pattern`, else the files that match it as a glob, sorted by byte value.

    `**` stands for any number of folders. A path that exists is taken literally, even if it holds
    `*`, `?` or `[`, and so is its part up to the last folder that exists; folders never match. If
    `**` finds a file under several names, through links, it counts once. Raises DataError for a
    folder, with the `kind` of files and an `example` of a pattern, for a FIFO, a socket or a
    device, and if nothing matches, with the `hint`.
    """
    literal = user_path(pattern)
    if os.path.isdir(literal):  # noqa: PTH112 (Path's own fails where a folder cannot be searched)
        raise DataError(
            f"{pattern}: this is a folder. Name the {kind} in it, for example "
            f"'{literal / example}'."
        )
    if os.path.exists(literal):  # noqa: PTH110
        check_can_end(literal, DataError)
        return [literal]
    # Path.glob takes no absolute pattern.
    paths = [Path(name) for name in glob.glob(_as_glob(literal), recursive=True)]  # noqa: PTH207
    if "**" in literal.parts:
        shortest_last = sorted(paths, key=lambda path: len(path.parts), reverse=True)
        paths = list({os.path.realpath(path): path for path in shortest_last}.values())
    files = sorted((path for path in paths if not path.is_dir()), key=os.fsencode)
    if not files:
        bracket = " In a pattern, write [[] for the character [." if "[" in pattern else ""
        raise DataError(
            f"{pattern}: no such file, and no file matches it as a pattern.{bracket} {hint}"
        )
    for path in files:
        check_can_end(path, DataError)
    return files


def _as_glob(pattern: Path) -> str:
    """`pattern`, with `*`, `?` and `[` in the names of folders that exist taken literally."""
    folder = next((parent for parent in pattern.parents if parent.is_dir()), None)
    if folder is None:
        return str(pattern)
    return str(Path(glob.escape(str(folder)), pattern.relative_to(folder)))


def check_ids(shards: Sequence[TokenShard], V: int) -> None:
    """Raise DataError, naming file, position and id, if a token id is not below V.

    Data sets of up to 2**26 tokens are read completely. Of larger ones only the beginning of each
    shard is read, which is enough to find data made with another tokenizer. The loader checks every
    batch that it reads.
    """
    may_be_above = [shard for shard in shards if shard.format.num_ids > V]
    _check_blocks(_scanned_blocks(may_be_above), V)


def check_all_ids(shard: TokenShard, V: int) -> None:
    """As `check_ids`, but of every token of a shard."""
    blocks = enumerate(token_blocks(shard, shard.num_tokens))
    _check_blocks(((shard, i * SCAN_BLOCK_TOKENS, block) for i, block in blocks), V)


def _check_blocks(blocks: Iterable[tuple[TokenShard, int, Tokens]], V: int) -> None:
    for shard, start, block in blocks:
        if int(block.max()) >= V:
            offset = int(np.argmax(block >= V))
            raise id_error(shard, start + offset, int(block[offset]), V)


def largest_id(shards: Sequence[TokenShard]) -> int:
    """The largest token id in `shards`; of large data sets in the part that `check_ids` reads."""
    return max(int(block.max()) for _, _, block in _scanned_blocks(shards))


def _scanned_blocks(shards: Sequence[TokenShard]) -> Iterator[tuple[TokenShard, int, Tokens]]:
    """Blocks of tokens, each with its shard and the position of its first token."""
    share = SCAN_BUDGET_TOKENS // max(len(shards), 1)
    whole = sum(shard.num_tokens for shard in shards) <= SCAN_BUDGET_TOKENS
    for shard in shards:
        last = shard.num_tokens if whole else min(shard.num_tokens, share)
        start = 0
        for block in token_blocks(shard, last):
            yield shard, start, block
            start += block.size


def token_blocks(shard: TokenShard, count: int) -> Iterator[Tokens]:
    """The first `count` tokens in blocks of 2**22.

    They are read, not mapped: pages of a mapped file count as memory of this process.
    """
    with reading(shard.path), shard.path.open("rb") as file:
        file.seek(HEADER_BYTES)
        while count > 0:
            size = min(count, SCAN_BLOCK_TOKENS)
            block = np.frombuffer(file.read(size * shard.format.id_bytes), shard.format.dtype)
            if block.size < size:
                raise DataError(f"{shard.path}: the file was cut short while it was read.")
            yield block
            count -= size


def id_error(shard: TokenShard, position: int, token: int, V: int) -> DataError:
    """The error for a token id at `position` of `shard` that is not below the vocabulary size V."""
    return DataError(
        f"{shard.path}: token {position:,} is id {token}, but the model's vocabulary has {V:,} ids "
        f"(0 to {V - 1}). Prepare the data with the model's tokenizer, or use a model with at "
        f"least {token + 1:,} ids."
    )


def ways_to_hash(shards: Sequence[TokenShard]) -> list[str]:
    """How each shard is hashed: the whole file up to 32 MiB, samples of a larger one.

    Of many shards that would be too much to read. Then it is only the ends of each: a data set of
    any size is known within seconds.
    """
    ways = [_way_for(shard) for shard in shards]
    read = sum(_hashed_bytes(shard, way) for shard, way in zip(shards, ways, strict=True))
    return ways if read <= MOST_HASHED_BYTES else [ENDS] * len(ways)


def share_to_hash(shards: Sequence[TokenShard]) -> int:
    """n, if every n-th of the shards may be hashed as if it were alone, so that it is not much."""
    read = sum(_hashed_bytes(shard, _way_for(shard)) for shard in shards)
    return max(1, -(-read // MOST_HASHED_BYTES))


def _way_for(shard: TokenShard) -> str:
    return ALL if shard.num_bytes <= FULL_HASH_BYTES else SAMPLED


def _hashed_bytes(shard: TokenShard, way: str) -> int:
    num_blocks = WAYS_TO_HASH[way]
    return shard.num_bytes if num_blocks is None else num_blocks * SAMPLED_BLOCK_BYTES


def fingerprint(
    shards: Sequence[TokenShard], ways: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """What identifies each shard, ready for JSON: name, tokens, sha256, hashed (the way)."""
    return [
        {
            "name": shard.path.name,
            "tokens": shard.num_tokens,
            "sha256": shard.sha256(way),
            "hashed": way,
        }
        for shard, way in zip(shards, ways or ways_to_hash(shards), strict=True)
    ]


@dataclass(frozen=True)
class Cut:
    """How an epoch cuts the S shards into rows.

    `starts` (S,): the first token of each shard's first row; `rows_in_shard` (S,): how many rows
    each shard has.
    """

    starts: Counts
    rows_in_shard: Counts

    @property
    def num_rows(self) -> int:
        """The rows of all shards together."""
        return int(self.rows_in_shard.sum())


def read_rows(shards: Sequence[TokenShard], cut: Cut, indices: Counts, V: int, out: Ids) -> None:
    """Copy the rows `indices` (n,) of the cut to `out`; rows are numbered through all shards.

    Written: out (n, T + 1) int32. Raises DataError if a token id is not below V.
    """
    T = out.shape[1] - 1
    ends = np.cumsum(cut.rows_in_shard)
    owners = np.searchsorted(ends, indices, side="right")
    index_in_shard = indices - (ends[owners] - cut.rows_in_shard[owners])
    starts = cut.starts[owners] + index_in_shard * T
    for row, owner, start in zip(out, owners.tolist(), starts.tolist(), strict=True):
        row[:] = shards[owner].tokens[start : start + T + 1]
    ids = out.view(np.uint32)  # in int32 an id of 2**31 or more is negative
    if ids.size and int(ids.max()) >= V:
        i, t = (int(x) for x in np.argwhere(ids >= V)[0])
        raise id_error(shards[int(owners[i])], int(starts[i]) + t, int(ids[i, t]), V)


def check_row_fits(shards: Sequence[TokenShard], T: int) -> None:
    """Raise DataError unless at least one shard holds a row of T + 1 tokens."""
    longest = max((shard.num_tokens for shard in shards), default=0)
    if longest < T + 1:
        where = f"{shards[0].path}: " if len(shards) == 1 else f"{len(shards)} token files: "
        raise DataError(
            f"{where}the longest file has {longest:,} tokens, but one row takes {T + 1:,} "
            f"(T {T} + 1). Use -t {max(longest - 1, 1)} or less, or more text."
        )


def check_sizes(B: int, T: int, rank: int, num_ranks: int) -> None:
    """Raise DataError for an impossible batch size, row length or rank."""
    if B < 1 or T < 1 or not 0 <= rank < num_ranks:
        raise DataError(
            f"B {B}, T {T}, rank {rank} of {num_ranks}: B and T must be at least 1, "
            f"and the rank must be below the number of ranks."
        )


def _checked(path: Path) -> tuple[int, TokenFormat]:
    """The number of tokens in a file, and its format."""
    token_format, count = read_format(path)
    with reading(path):
        size = path.stat().st_size
    if count < 2:
        raise DataError(
            f"{path}: its header counts {count} token(s); at least 2 are needed "
            f"(one to read, one to predict). Prepare it from more text."
        )
    expected = _file_bytes(count, token_format)
    if size != expected:
        raise DataError(
            f"{path}: {size:,} bytes, but its header counts {count:,} tokens, which take "
            f"{expected:,} bytes. The file is cut short or damaged; make or copy it again."
        )
    return count, token_format


def _file_bytes(num_tokens: int, token_format: TokenFormat) -> int:
    return HEADER_BYTES + token_format.id_bytes * num_tokens


def _map_tokens(path: Path, num_tokens: int, token_format: TokenFormat) -> Tokens:
    with reading(path):
        size = path.stat().st_size
        if size != _file_bytes(num_tokens, token_format):
            raise DataError(
                f"{path}: the file changed during the run ({size:,} bytes, "
                f"{num_tokens:,} tokens when it was opened). Restore it and resume the run."
            )
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if size >= LARGE_FILE_BYTES and hasattr(mmap, "MADV_RANDOM"):
            with contextlib.suppress(OSError):
                mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, token_format.dtype, num_tokens, HEADER_BYTES)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What reads a token file stands in this: an OSError becomes a DataError with its path."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: could not be read ({error.strerror or error}). "
            f"Check the path and its permissions."
        ) from error
