"""The token files of one data set: training shards of a given size and one for validation."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy.typing as npt

from cupygpt.data.token_files import Tokens, open_shards, record_path
from cupygpt.data.token_format import TWO_BYTES, TokenFormat
from cupygpt.data.token_record import tokenizer_copy_path
from cupygpt.data.token_writer import shard_writer
from cupygpt.data.tokenizer_files import pattern_path
from cupygpt.errors import DataError
from cupygpt.files import os_errors_name, remove_quietly


class ShardSeries:
    """Writes tokens to `<stem>.bin` or, above `shard_tokens`, to `<stem>_000001.bin` and so on.

    A context manager; an exception inside removes the files of this series. Each file is written
    atomically, but not the series: a file of an earlier run may be replaced before the exception,
    and a killed process leaves the finished files next to those of an earlier run. `shard_tokens`
    is at least 2. A single token left over at the end of an `append` joins the full shard before
    it, because a file needs two.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        shard_tokens: int,
        token_format: TokenFormat = TWO_BYTES,
    ) -> None:
        assert shard_tokens >= 2
        self.paths: list[Path] = []
        self.num_tokens = 0
        self._folder, self._stem = folder, stem
        self._shard_tokens = shard_tokens
        self._format = token_format
        self._in_shard = 0
        self._path: Path | None = None
        self._open_shard = contextlib.ExitStack()
        self._append: Callable[[npt.ArrayLike], None] | None = None

    def append(self, tokens: Tokens) -> None:
        """Write tokens (n,); when a file is full, a new one begins. Not after `finish`.

        Raises RunError, naming the file, if it cannot be written.
        """
        self.num_tokens += tokens.size
        while tokens.size:
            room = self._shard_tokens - self._in_shard
            if self._append is None or (room <= 0 and tokens.size >= 2):
                self._append = self._next_shard()
                continue
            taken = tokens[: max(room, 1)]
            self._append(taken)
            self._in_shard += taken.size
            tokens = tokens[taken.size :]

    def finish(self) -> None:
        """Complete the last file; a single one gets its name without a number.

        Leaving the `with` block does the same. Call it inside the block of two series if both are
        to be removed when either cannot be completed. Raises RunError if that fails, and DataError
        if fewer than 2 tokens were written.
        """
        if self._path is None:
            return
        self._finish_shard()
        if len(self.paths) == 1:
            path = self._folder / f"{self._stem}.bin"
            with os_errors_name(path):
                self.paths = [self.paths[0].replace(path)]

    def _next_shard(self) -> Callable[[npt.ArrayLike], None]:
        self._finish_shard()
        self._path = self._folder / f"{self._stem}_{len(self.paths) + 1:06}.bin"
        self._in_shard = 0
        return self._open_shard.enter_context(shard_writer(self._path, self._format))

    def _finish_shard(self) -> None:
        self._open_shard.close()
        if self._path is not None:
            self.paths.append(self._path)
            self._path = None

    def __enter__(self) -> "ShardSeries":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        complete = False
        try:
            if error is None:
                self.finish()
                complete = True
            else:
                self._open_shard.__exit__(kind, error, traceback)
        finally:
            if not complete:
                self._remove()

    def _remove(self) -> None:
        for path in self.paths:
            # A file that cannot be removed must neither keep the others nor hide the first error.
            remove_quietly(path)


def remove_stale(folder: Path, name: str, written: list[Path]) -> list[Path]:
    """Delete token files that an earlier run left under the same name; returns their paths.

    Otherwise a pattern such as `name_train*.bin` would mix two data sets. Only valid token files
    named `<name>_train.bin`, `<name>_train_NNNNNN.bin` or `<name>_val.bin` are deleted, and what
    belongs to them: their records, and the copy of their tokenizer. `written` are the files of
    these kinds that stay.
    """
    ours = re.compile(re.escape(name) + r"_(train(_\d{6})?|val)\.bin")
    found = [path for path in sorted(folder.iterdir()) if path not in written]
    removed = [path for path in found if ours.fullmatch(path.name) and _is_token_file(path)]
    for path in removed:
        path.unlink()
    copy = tokenizer_copy_path(folder, name)
    for path in found:
        token_file = path.with_suffix("")
        orphaned = ours.fullmatch(token_file.name) and not token_file.exists()
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
