"""A file as a stream of bytes, unpacked if it is packed with gzip or zstd."""

import gzip
import os
import stat
import zlib
from pathlib import Path
from typing import IO, Any, cast

from cupygpt.errors import ConfigError, DataError
from cupygpt.files import check_can_end

PACKINGS = {".gz": "gzip", ".zst": "zstd"}
"""The endings of packed files, and what they are packed with."""

INSTALL_ZSTD = "pip install 'cupygpt[zstd]'"


class ByteSource:
    """The bytes of one file, unpacked. `name` is what the user calls it.

    Raises ConfigError if a package is missing that unpacks it.
    """

    def __init__(self, name: str, raw: IO[bytes], packing: str | None) -> None:
        self.name, self.packing = name, packing
        self._raw, self._stream = raw, raw
        self._damages: tuple[type[Exception], ...] = ()
        self._unpacked = 0
        if packing == "gzip":
            self._stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
            self._damages = (gzip.BadGzipFile, zlib.error)
        elif packing == "zstd":
            zstd = import_zstd(name)
            self._stream = zstd.ZstdFile(raw)
            self._damages = (zstd.ZstdError,)

    def read(self, size: int) -> bytes:
        """The next `size` bytes; less at the end of the file. Raises DataError."""
        try:
            block = self._stream.read(size)
        except self._damages as error:
            large = "requires too much memory" in str(error)
            raise DataError(
                f"{self.name}: after {self._unpacked:,} bytes of text, this is no {self.packing} "
                f"data, or it is damaged ({error}). "
                + ("Unpack it first: zstd -d --long=31." if large else "Copy the file again.")
            ) from error
        except EOFError as error:
            raise DataError(
                f"{self.name}: the {self.packing} data are cut short after {self._unpacked:,} "
                f"bytes of text. Copy the file again."
            ) from error
        except OSError as error:
            raise cannot_read(self.name, error) from error
        self._unpacked += len(block)
        return block

    def position(self) -> int:
        """The bytes of the file that were read so far, packed as they are."""
        return self._raw.tell()


def cannot_read(name: str, error: OSError) -> DataError:
    """The error for a file that the system does not let us read."""
    return DataError(f"{name}: could not be read ({error.strerror or error}). Check the path.")


def open_file(name: str) -> IO[bytes]:
    """The file, open for reading. Raises DataError if it cannot be opened, or may never end."""
    try:
        file = open(name, "rb", opener=_open_at_once)  # noqa: SIM115 (its user closes it)
    except OSError as error:
        raise cannot_read(name, error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        with file:
            check_can_end(Path(name), DataError)
    return file


def _open_at_once(name: str, flags: int) -> int:
    """Open a file; a FIFO too, without waiting for somebody who writes to it."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def packing_of(name: str) -> str | None:
    """What a file is packed with by its name: "gzip", "zstd" or None."""
    return PACKINGS.get(os.path.splitext(name)[1].lower())  # noqa: PTH122 (fast)


def packing_by_content(start: bytes) -> str | None:
    """What data are packed with by their first bytes: "gzip", "zstd" or None."""
    if start.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    return "zstd" if start.startswith(b"\x28\xb5\x2f\xfd") else None


def import_zstd(name: str) -> Any:
    """The module that reads zstd: Python's own from 3.14 on, else that of backports.zstd.

    Raises ConfigError, naming the file and the line that installs the package, if it is missing.
    """
    try:
        from compression import zstd

        return zstd
    except ImportError:
        pass
    try:
        from backports import zstd as backport

        return backport
    except ImportError as error:
        raise ConfigError(
            f"{name}: reading zstd needs a package before Python 3.14. Install it: {INSTALL_ZSTD}"
        ) from error
