"""Where compiled kernels are kept: in the cache folder of cupygpt, or nowhere for long."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from cupygpt.cache_dir import cache_dir
from cupygpt.emulator.faults import EmulatorError


def cache_folder() -> Path:
    """The folder of compiled kernels; a temporary one of this process if no home folder is known.

    Raises EmulatorError if it cannot be written.
    """
    kept = cache_dir()
    if kept is None:
        return _temporary_folder()
    folder = kept / "emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        why = "no permission to write"
    except OSError as error:
        writable, why = False, error.strerror or str(error)
    if not writable:
        raise EmulatorError(
            f"compiled kernels cannot be kept in {folder} ({why}). Name another folder with the "
            "environment variable CUPYGPT_CACHE_DIR."
        )
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write so that another process sees all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cupygpt-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
