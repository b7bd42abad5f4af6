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
    """Open `path` for writing so that a crash at any byte leaves the old file, or none.

    The bytes go to the file `<name>.partial` in the same folder. Leaving the block fsyncs and
    renames it; an exception inside the block removes it. A failing write (disk full, quota, I/O
    error) becomes a RunError that names the file.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _remove_quietly(partial)
        raise RunError(
            f"{path}: could not be written ({error.strerror or error}). "
            f"Earlier files are untouched; free some space or choose another folder."
        ) from error
    except BaseException:
        _remove_quietly(partial)
        raise


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
