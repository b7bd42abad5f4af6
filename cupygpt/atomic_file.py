"""Files that are complete or absent: written under another name, fsynced, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cupygpt.errors import RunError

PARTIAL_SUFFIX = ".partial"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing. A crash at any byte leaves the old file or the complete new one.

    If there was no old file, a crash leaves none. The bytes go to the file `<name>.partial` in the
    same folder. Leaving the block fsyncs and renames it; an exception inside the block removes the
    partial file. Any OSError in the block (disk full, quota, I/O error) becomes a RunError that
    names `path`.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with os_errors_name(path):
            with partial.open("wb") as file:
                try:
                    yield file
                except BaseException:
                    # If the disk is full, closing fails too, which must not hide the first error.
                    with contextlib.suppress(OSError):
                        file.close()
                    raise
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
    except BaseException:
        _remove_quietly(partial)
        raise


@contextlib.contextmanager
def os_errors_name(path: Path) -> Iterator[None]:
    """Any OSError in the block becomes a RunError: `path` could not be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: could not be written ({error.strerror or error}). If the file existed "
            f"before, it is unchanged. Free some space or choose another folder."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable; does nothing on Windows, which cannot open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
