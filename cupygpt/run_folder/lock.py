"""The lock of a run folder: one process at a time writes to it.

The system holds the lock for as long as the process lives, so that kill -9 frees it. The file
itself only says who has it. With several ranks rank 0 takes the lock for all of them. Reading a
folder (sample, plot_log) needs no lock.
"""

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
from pathlib import Path

from cupygpt.console.safe_text import safe_text
from cupygpt.errors import ConfigError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_LOCKED_BYTE = 2**30
"""Windows locks bytes, and nobody can read a locked one: this one lies behind the text."""


class FolderLock:
    """The lock of a run folder, held from the constructor until `release`, or the block's end.

    Raises ConfigError if another process holds it, with who it is, or if the folder cannot be
    written to. `warning` is a sentence where the file system has no locks, else None.
    """

    def __init__(self, folder: Path) -> None:
        self.warning: str | None = None
        self._path = folder / LOCK
        try:
            self._descriptor = self._open_and_lock(folder)
            with contextlib.suppress(OSError):  # a full disk: the lock holds without the text
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, json.dumps(_who_i_am(), indent=1).encode())
        except OSError as error:
            raise ConfigError(
                f"{folder}: not writable ({error.strerror or error}); choose another folder."
            ) from error

    def _open_and_lock(self, folder: Path) -> int:
        while True:
            descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644
            )
            try:
                _lock(descriptor)
                if _is_same_file(descriptor, self._path):
                    return descriptor
                # Its last owner has removed the file meanwhile: the next one counts.
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                if error.errno in _TAKEN:
                    owner = _read_owner(self._path)
                    raise ConfigError(
                        f"{folder} is in use by {owner}. Wait until it ends, stop it (Ctrl-C there "
                        f"saves a checkpoint), or choose another folder with -o."
                    ) from error
                if error.errno not in _NO_LOCKS:
                    raise
                self.warning = (
                    f"the file system of {folder} has no locks ({error.strerror}): take care that "
                    f"no second process uses this folder"
                )
                return descriptor
            os.close(descriptor)

    def release(self) -> None:
        """Remove the file and free the lock. A second call does nothing."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):  # Windows cannot remove an open file: it stays
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _lock(descriptor: int) -> None:
    """Lock an open file, or raise OSError at once."""
    if sys.platform == "win32":
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_same_file(descriptor: int, path: Path) -> bool:
    if sys.platform == "win32":
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _who_i_am() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _read_owner(path: Path) -> str:
    """Who holds the lock, in words; another process may be writing the text just now."""
    try:
        owner = json.loads(path.read_bytes())
        return safe_text(
            f"process {int(owner['pid'])} on {owner['host']} since {owner['since']} "
            f"({owner['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
