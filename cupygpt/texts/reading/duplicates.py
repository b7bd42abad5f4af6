"""Which documents of a corpus of any size occurred before, found with bounded memory.

The hashes of all documents go to a temporary file. Then they are compared in groups that fit into
memory: equal hashes are always in one group.
"""

import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.files import os_errors_name

ENTRY = np.dtype([("first", "<u8"), ("second", "<u8"), ("length", "<u8")])
"""16 bytes of a document's SHA-256, and its length in bytes."""

GROUP_ENTRIES = 2**21
"""About so many documents are compared at once, which takes 150 MB."""
BUFFERED = 2**15


class Duplicates:
    """Collects documents and finds those that occurred before; does nothing without a folder.

    A context manager: the temporary file in `folder` is gone when the block ends, or the process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._count = 0
        self._buffer = array("B")
        self._open = ExitStack()

    def __enter__(self) -> "Duplicates":
        if self._folder is not None:
            self._file = self._open.enter_context(tempfile.TemporaryFile(dir=self._folder))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, sha256: bytes, length: int) -> None:
        """The next document, by its hash."""
        if self._folder is None:
            return
        self._buffer.frombytes(sha256[:16] + length.to_bytes(8, "little"))
        self._count += 1
        if len(self._buffer) >= BUFFERED * ENTRY.itemsize:
            self._flush()

    def found(self) -> Iterator[tuple[int, int]]:
        """The number, from 0, and the length of each document that equals an earlier one."""
        if self._folder is None:
            return
        self._flush()
        groups = -(-self._count // GROUP_ENTRIES)
        for group in range(groups):
            numbers, entries = self._group(group, groups)
            # A stable sort keeps the earliest of equal ones first.
            order = np.lexsort((entries["second"], entries["first"]))
            entries, numbers = entries[order], numbers[order]
            equal = (entries["first"][1:] == entries["first"][:-1]) & (
                entries["second"][1:] == entries["second"][:-1]
            )
            for at in np.flatnonzero(equal) + 1:
                yield int(numbers[at]), int(entries["length"][at])

    def _group(self, group: int, groups: int) -> tuple[Any, Any]:
        """The numbers and entries of the documents whose hash falls into this group."""
        self._file.seek(0)
        numbers, entries, start = [], [], 0
        while raw := self._file.read(BUFFERED * ENTRY.itemsize):
            block = np.frombuffer(raw, ENTRY)
            chosen = np.flatnonzero(block["first"] % np.uint64(groups) == group)
            numbers.append(start + chosen)
            entries.append(block[chosen])
            start += block.size
        return np.concatenate(numbers), np.concatenate(entries)

    def _flush(self) -> None:
        with os_errors_name(self._folder / "(a temporary file)"):  # type: ignore[operator]
            self._file.write(self._buffer.tobytes())
        self._buffer = array("B")
