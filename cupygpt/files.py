"""How files are written and what opens them.

Every file is complete or absent: it is written under another name, fsynced, then renamed. The files
of llm.c (models, training states, tokens, tokenizers) share a header of 256 int32, whose first one
tells the kind.
"""

import contextlib
import errno
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cupygpt.errors import CheckpointError, CupyGPTError, RunError

if sys.platform != "win32":
    import fcntl

PARTIAL_SUFFIX = ".partial"

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS

_BLOCK_BYTES = 1 << 24

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What fsync says where the file system does not offer it: VirtualBox, some of FUSE, pipes."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing. A crash at any byte leaves the old file or the complete new one.

    If there was no old file, a crash leaves none. The bytes go to the file `<name>.partial` in the
    same folder, which is always a new one: a link of that name is removed, not followed. Leaving
    the block fsyncs and renames it; an exception inside the block removes the partial file. Any
    OSError in the block (disk full, quota, I/O error) becomes a RunError that names `path`.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with partial_file(path) as file:
            yield file
        with os_errors_name(path):
            partial.replace(path)
    except BaseException:
        remove_quietly(partial)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[BinaryIO]:
    """Open `<name>.partial` beside `path` for writing, as `atomic_write`, which then renames it.

    For several files that are renamed together.
    """
    with os_errors_name(path), _open_new(path.with_name(path.name + PARTIAL_SUFFIX)) as file:
        try:
            yield file
        except BaseException:
            # If the disk is full, closing fails too, which must not hide the first error.
            with contextlib.suppress(OSError):
                file.close()
            raise
        file.flush()
        sync_file(file.fileno())


def _open_new(path: Path) -> BinaryIO:
    """Open a file that does not exist yet, after removing what has its name."""
    path.unlink(missing_ok=True)
    return path.open("xb")


@contextlib.contextmanager
def os_errors_name(path: Path, verb: str = "written") -> Iterator[None]:
    """Any OSError in the block becomes a RunError: `path` could not be written, or else `verb`."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: could not be {verb} ({error.strerror or error}). If the file existed "
            f"before, it is unchanged. {_remedy(error)}"
        ) from error


def remove_file(path: Path) -> None:
    """Delete a file if it is there. Raises RunError if it cannot be deleted."""
    with os_errors_name(path, "deleted"):
        path.unlink(missing_ok=True)


def _remedy(error: OSError) -> str:
    if is_full(error):
        return "Free some space or choose another folder."
    return "Check the folder and its disk, or choose another folder."


def is_full(error: BaseException | None) -> bool:
    """Whether a system error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def sync_file(descriptor: int) -> None:
    """fsync an open file or folder; does nothing where the file system has no fsync."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where the system can open and fsync a folder.

    Raises RunError if the disk fails.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)
    except PermissionError:
        return  # a folder that may be written to but not listed
    except OSError as error:
        raise RunError(
            f"{folder}: the files are written, but the folder could not be saved to disk "
            f"({error.strerror or error}). Check the disk."
        ) from error


def write_arrays(path: Path, arrays: Iterable[np.ndarray]) -> int:
    """Write arrays one after the other, atomically; returns the CRC-32 of the bytes."""
    checksum = 0
    with atomic_write(path) as file:
        for array in arrays:
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for start in range(0, len(raw), _BLOCK_BYTES):
                block = raw[start : start + _BLOCK_BYTES].data
                file.write(block)
                checksum = zlib.crc32(block, checksum)
    return checksum


def file_checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


class FileKind(Enum):
    """The kinds of llm.c's files: the magic number that opens one, and its name in messages."""

    MODEL = 20240326, "a model"
    DEBUG_STATE = 20240327, "a debug state"
    TOKENIZER = 20240328, "a tokenizer"
    TOKENS = 20240520, "a GPT-2 token file"
    EVALUATION = 20240522, "a multiple-choice evaluation file"
    STATE = 20240527, "a training state"
    LLAMA3_TOKENS = 20240801, "a token file of 4-byte ids"
    LLAMA3_MODEL = 20240803, "a Llama 3 model"

    def __init__(self, magic: int, title: str) -> None:
        self.magic = magic
        self.title = title


def kind_of(magic: int) -> FileKind | None:
    """The kind of file that a magic number opens; None if it is no file of llm.c's."""
    return next((kind for kind in FileKind if kind.magic == magic), None)


def user_path(path: str | Path) -> Path:
    """`path` with `~` or `~user` at its beginning replaced by the home folder, if there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own fails for an unknown user)


def user_text(path: str) -> str:
    """`user_path` for a flag that may also hold another word than a path."""
    return str(user_path(path)) if path.startswith("~") else path


def check_can_end(
    path: Path,
    error: type[CupyGPTError],
    advice: str = "Write its content into a file first, and name that.",
) -> None:
    """Raise `error`, with the `advice`, for a FIFO, a socket or a device.

    Reading them may wait or go on for ever.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever opens it says why it cannot be read
    if stat.S_ISFIFO(mode):
        kind = "a FIFO (a pipe)"
    elif stat.S_ISSOCK(mode):
        kind = "a socket"
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        kind = "a device"
    else:
        return
    raise error(f"{path}: this is {kind}, not a file. {advice}")


def read_header(path: Path, error: type[CupyGPTError] = CheckpointError) -> np.ndarray:
    """The 256 int32 of a file. Raises `error` if it cannot be read or is shorter than that."""
    check_can_end(path, error)
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as reason:
        raise error(
            f"{path}: could not be read ({reason.strerror or reason}). "
            f"Check the path and its permissions."
        ) from reason
    return parse_header(path, raw, error)


def parse_header(path: Path, raw: bytes, error: type[CupyGPTError] = CheckpointError) -> np.ndarray:
    """The 256 int32 that begin `raw`, the content of `path`. Raises `error` if it is shorter."""
    if len(raw) < HEADER_BYTES:
        raise error(
            f"{path}: {len(raw)} bytes, but the header alone has {HEADER_BYTES:,}. "
            f"The file is empty or cut short; make or copy it again."
        )
    return np.frombuffer(raw, "<i4", count=HEADER_INTS).astype(np.int32)


def check_kind(
    path: Path,
    header: np.ndarray,
    wanted: FileKind,
    error: type[CupyGPTError] = CheckpointError,
    advice: str = "",
) -> None:
    """Raise `error` unless the file is of the wanted kind: what it is instead, and the `advice`."""
    magic = int(header[0])
    if magic == wanted.magic:
        return
    kind = kind_of(magic)
    this_is = f"this is {kind.title}, not" if kind else "this is not"
    raise error(
        f"{path}: {this_is} {wanted.title} "
        f"(magic number {magic}, expected {wanted.magic}). {advice}".rstrip()
    )


def is_same_file(path: Path, other: Path | None) -> bool:
    """Whether two paths lead to one file that exists."""
    try:
        return other is not None and path.samefile(other)
    except OSError:
        return False


def locked(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; False if another process has locked it.

    The system frees the lock when the process ends, also after kill -9. Where the file system, or
    Windows, has no such locks, every process may go on.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
    return True


def remove_quietly(path: Path) -> None:
    """Delete a file if it is there and can be deleted."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
