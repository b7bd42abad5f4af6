"""One process at a time writes the token files of a name: two would mix their partial files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cupygpt.errors import ConfigError
from cupygpt.files import locked, os_errors_name, remove_quietly


@contextlib.contextmanager
def one_writer(folder: Path, name: str) -> Iterator[None]:
    """No other process writes the data set `name` in `folder` until the block ends.

    Raises ConfigError if one does so now.
    """
    path = folder / f".{name}_prepare.lock"
    with _locked_file(path, name):
        try:
            yield
        finally:
            remove_quietly(path)


def _locked_file(path: Path, name: str) -> BinaryIO:
    while True:
        with os_errors_name(path):
            file = path.open("ab")
        if not locked(file):
            file.close()
            raise ConfigError(
                f"{path.parent}: another process is writing {name}_train.bin there. Wait until it "
                f"ends, or choose another folder (-o) or name (--name)."
            )
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # its last owner has removed it meanwhile: the next one counts
