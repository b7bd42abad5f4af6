"""The token files of one data set, written piece by piece and shown only when all are complete."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import SCAN_BLOCK_TOKENS, open_shards, record_path
from cupygpt.data.token_format import TokenFormat
from cupygpt.data.token_record import Place, tokenizer_copy_path
from cupygpt.data.token_writer import token_header
from cupygpt.data.tokenizer_files import pattern_path
from cupygpt.errors import DataError, RunError
from cupygpt.files import (
    HEADER_BYTES,
    PARTIAL_SUFFIX,
    os_errors_name,
    remove_file,
    remove_quietly,
    sync_file,
)
from cupygpt.texts.writing.journal import journal_path

Ids = npt.NDArray[Any]


class ShardSeries:
    """Writes tokens to the shards `<stem>_000001.bin` and so on, `<stem>.bin` if there is but one.

    Until `finish` they are called `.partial` and have no valid header; who knows their `state` can
    go on with them in another process. A shard has `shard_tokens` tokens, at least 2, and the last
    one the rest. A single token at the end of a document joins the full shard before it, because a
    file needs two.

    All methods raise RunError, naming the file, if the disk refuses.
    """

    def __init__(
        self, folder: Path, stem: str, shard_tokens: int, token_format: TokenFormat
    ) -> None:
        assert shard_tokens >= 2
        self.num_tokens = 0
        self._folder, self._stem = folder, stem
        self._shard_tokens = shard_tokens
        self._format, self._dtype = token_format, token_format.dtype
        self._sizes: list[int] = []
        self._held = np.empty(0, self._dtype)  # one token, of which nobody knows whether it ends
        self._file: BinaryIO | None = None

    def write(self, ids: Ids, ends: Sequence[int] | Ids = ()) -> None:
        """Append ids (n,); documents end after the first `ends[0]` of them, and so on."""
        self.num_tokens += ids.size
        if self._held.size:
            ids, ends = np.concatenate([self._held, ids]), np.asarray(ends, np.int64) + 1
            self._held = self._held[:0]
        at = 0
        while at < ids.size:
            room = self._shard_tokens - self._sizes[-1] if self._sizes else 0
            if room <= 0:
                following = int(np.searchsorted(ends, at, side="right"))
                end = int(ends[following]) if following < len(ends) else None
                if end == at + 1 and self._sizes:
                    room = 1
                elif end is None and ids.size - at == 1:
                    self._held = ids[at:].astype(self._dtype)
                    return
                else:
                    self._next_shard()
                    continue
            self._put(ids[at : at + room])
            at += room

    def end_document(self) -> None:
        """What was written last ends a document."""
        held, self._held = self._held, self._held[:0]
        if held.size:
            if not self._sizes:
                self._next_shard()
            self._put(held)
        elif len(self._sizes) > 1 and self._sizes[-1] == 1:
            [last] = self.take_back(1)
            self.num_tokens += 1
            self._put(last)

    def take_back(self, count: int) -> Iterator[Ids]:
        """Remove the last `count` tokens, and give them in blocks, in their order."""
        self.num_tokens -= count
        held, self._held = self._held, self._held[:0]
        count -= held.size
        self._close()
        shard = len(self._sizes) - 1
        first, before = shard, 0
        while before < count:
            before += self._sizes[first]
            first -= 1
        first += 1
        skip = before - count
        for number in range(first, shard + 1):
            yield from self._read(number, skip)
            self._truncate(number, skip)
            skip = 0
        self._sizes = [size for size in self._sizes if size]
        self._open_last()
        if held.size:
            yield held

    def state(self) -> dict[str, Any]:
        """What must be known to go on, when all that was written is on the disk."""
        if self._file is not None:
            with os_errors_name(self._path(len(self._sizes) - 1)):
                self._file.flush()
                sync_file(self._file.fileno())
        return {"sizes": list(self._sizes), "held": self._held.tolist()}

    def restore(self, state: dict[str, Any]) -> bool:
        """Go on where `state` was taken; False if the files for it are not there."""
        sizes = [int(size) for size in state["sizes"]]
        for number, size in enumerate(sizes):
            path = self._partial(number)
            if not path.is_file() or path.stat().st_size < self._offset(size):
                return False
        self._sizes = sizes
        self._held = np.array(state["held"], self._dtype)
        self.num_tokens = sum(sizes) + self._held.size
        for number, size in enumerate(sizes):
            with os_errors_name(self._path(number)), self._partial(number).open("r+b") as file:
                file.truncate(self._offset(size))
        self._open_last()
        return True

    def finish(self) -> list[Place]:
        """Complete all files, which still have their partial names.

        Raises DataError if fewer than 2 tokens were written.
        """
        self.end_document()
        self._close()
        done = []
        for number, size in enumerate(self._sizes):
            path = self._path(number)
            header = token_header(path, size, self._format)
            with os_errors_name(path), self._partial(number).open("r+b") as file:
                file.write(header)
                file.flush()
                sync_file(file.fileno())
            done.append((self._partial(number), path))
        if len(done) == 1:
            done = [(done[0][0], self._folder / f"{self._stem}.bin")]
        return done

    def close(self) -> None:
        """Leave the files as they are, for whoever goes on with them."""
        with contextlib.suppress(RunError):  # a full disk refuses what is still in a buffer
            self._close()

    def remove(self) -> None:
        """Remove all files of this series."""
        self.close()
        for number in range(len(self._sizes) + 1):
            remove_quietly(self._partial(number))

    def _put(self, ids: Ids) -> None:
        assert self._file is not None
        # Two files may be open at once; the error must name the one that could not be written.
        with os_errors_name(self._path(len(self._sizes) - 1)):
            self._file.write(ids.astype(self._dtype, copy=False).data)
        self._sizes[-1] += ids.size

    def _next_shard(self) -> None:
        self.state()
        self._close()
        self._sizes.append(0)
        number = len(self._sizes) - 1
        with os_errors_name(self._path(number)):
            self._partial(number).unlink(missing_ok=True)
            self._file = self._partial(number).open("xb")
            self._file.write(bytes(HEADER_BYTES))

    def _open_last(self) -> None:
        if self._sizes:
            with os_errors_name(self._path(len(self._sizes) - 1)):
                self._file = self._partial(len(self._sizes) - 1).open("ab")

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with os_errors_name(self._path(len(self._sizes) - 1)):
                file.close()

    def _read(self, number: int, start: int) -> Iterator[Ids]:
        with (
            os_errors_name(self._path(number), "read again"),
            self._partial(number).open("rb") as file,
        ):
            file.seek(self._offset(start))
            while raw := file.read(SCAN_BLOCK_TOKENS * self._dtype.itemsize):
                yield np.frombuffer(raw, self._dtype)

    def _truncate(self, number: int, size: int) -> None:
        self._sizes[number] = size
        with os_errors_name(self._path(number)):
            if size == 0:
                self._partial(number).unlink()
            else:
                os.truncate(self._partial(number), self._offset(size))

    def _offset(self, tokens: int) -> int:
        return HEADER_BYTES + tokens * self._dtype.itemsize

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._stem}_{number + 1:06}.bin"

    def _partial(self, number: int) -> Path:
        path = self._path(number)
        return path.with_name(path.name + PARTIAL_SUFFIX)


def is_output(file_name: str, name: str) -> bool:
    """Whether a file is called like a token file of the data set `name`."""
    return bool(re.fullmatch(re.escape(name) + r"_(train|val)(_\d{6})?\.bin", file_name))


def remove_partial(folder: Path, name: str) -> None:
    """Delete what a run that was stopped has left of the data set `name`. Raises RunError."""
    remove_file(journal_path(folder, name))
    ours = re.compile(re.escape(name) + r"_(train|val)_\d{6}\.bin" + re.escape(PARTIAL_SUFFIX))
    for path in sorted(folder.iterdir()):
        if ours.fullmatch(path.name):
            remove_file(path)


def remove_stale(folder: Path, name: str, written: list[Path]) -> list[Path]:
    """Delete token files that an earlier run left under the same name; returns their paths.

    Otherwise a pattern such as `name_train*.bin` would mix two data sets. Only valid token files
    named `<name>_train.bin` or `<name>_train_NNNNNN.bin`, or `val` so, are deleted, and what
    belongs to them: their records, and the copy of their tokenizer. `written` are the files of
    these kinds that stay.
    """
    found = [path for path in sorted(folder.iterdir()) if path not in written]
    removed = [path for path in found if is_output(path.name, name) and _is_token_file(path)]
    for path in removed:
        path.unlink()
    copy = tokenizer_copy_path(folder, name)
    for path in found:
        token_file = path.with_suffix("")
        orphaned = is_output(token_file.name, name) and not token_file.exists()
        is_record = orphaned and path == record_path(token_file)
        if path.is_file() and (is_record or path in (copy, pattern_path(copy))):
            path.unlink()
    return removed


def _is_token_file(path: Path) -> bool:
    try:
        open_shards(str(path))
    except DataError:
        return False
    return True
