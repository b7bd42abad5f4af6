"""A file from the network: it goes on where it stopped, and is whole and right, or absent."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from cupygpt.console.figures import format_bytes
from cupygpt.errors import ConfigError, CupyGPTError, DataError, RunError
from cupygpt.files import (
    atomic_write,
    locked,
    os_errors_name,
    remove_file,
    remove_quietly,
    sync_file,
    sync_folder,
)
from cupygpt.web.transfer import Interrupted, Remote, Reply, WrongPart, request_file

SUFFIX = ".download"
"""What a file is called until it is whole."""
MEMO_SUFFIX = ".download.json"
"""Beside it: of which file it is the beginning."""

FIRST_BYTES = 1024
"""So much is looked at before the rest is loaded."""
LEAST_PROGRESS_BYTES = 2**16
"""An attempt that brings less than this beyond what was ever there has failed."""

Note: TypeAlias = Callable[[str], None]
Show: TypeAlias = Callable[[int], None]


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server that is silent, and how often to try again.

    The first wait between two attempts is `first_wait_s`, each next one twice as long; a server may
    ask for up to `longest_wait_s`.
    """

    silence_s: float = 30.0
    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 600.0


PATIENCE = Patience()


@dataclass(frozen=True)
class Wanted:
    """A file to be loaded from `url` to `path`, and what is known of it.

    `sha256` is that of its content. `check_beginning` is given the first 1024 bytes, or all if
    there are fewer; `check` the whole file under another name. They raise DataError if it cannot be
    what is wanted.
    """

    url: str
    path: Path
    sha256: str | None = None
    check_beginning: Callable[[bytes], None] = lambda _: None
    check: Callable[[Path], None] = lambda _: None


@dataclass(frozen=True)
class _Memo:
    """Which file a part is of."""

    url: str
    size: int | None
    validator: str | None
    sha256: str | None


def download(
    wanted: Wanted, note: Note, show: Show = lambda _: None, patience: Patience | None = None
) -> None:
    """Load a file; `show` is told how many bytes of it are there, `note` what went wrong.

    What an earlier call has loaded is used if the server still has the same file, by its ETag or
    date. After an interruption it is tried again. Raises DataError for content that cannot be what
    is wanted, and RunError if the server or the disk gives up; the part stays then, and the next
    call goes on. What was found to be wrong is removed.
    """
    part = wanted.path.with_name(wanted.path.name + SUFFIX)
    with _locked(part) as file:
        transfer = _Transfer(wanted, part, file, note, show, patience or PATIENCE)
        try:
            transfer.run()
            transfer.check()
        except BaseException:
            transfer.leave()
            raise
        with os_errors_name(wanted.path):
            sync_file(file.fileno())
    with os_errors_name(wanted.path):
        part.replace(wanted.path)
    remove_file(transfer.memo_path)
    sync_folder(wanted.path.parent)


class _Transfer:
    """The part of one file that is there, and the attempts to get the rest."""

    def __init__(
        self, wanted: Wanted, part: Path, file: BinaryIO, note: Note, show: Show, patience: Patience
    ) -> None:
        self.memo_path = wanted.path.with_name(wanted.path.name + MEMO_SUFFIX)
        self._wanted, self._part, self._file = wanted, part, file
        self._note, self._show, self._patience = note, show, patience
        self._there = file.seek(0, os.SEEK_END)
        self._furthest = self._there
        self.memo = self._load_memo()
        if self.memo is None or self.memo.validator is None:
            self._begin_anew()

    def run(self) -> None:
        """Load what is missing."""
        failures = 0
        if self._there:
            self._note(f"{self._name}: going on after {format_bytes(self._there)}")
        while not self._is_whole():
            furthest = self._furthest
            try:
                self._attempt()
                return
            except (Interrupted, WrongPart) as error:
                advanced = self._furthest - furthest >= LEAST_PROGRESS_BYTES
                failures = 0 if advanced else failures + 1
                self._after(error, failures)

    def check(self) -> None:
        """Raise DataError, and drop it, unless the file has the known hash and right content."""
        try:
            _check(self._wanted, self._part, self.memo)
        except DataError:
            self._begin_anew()
            raise
        if self.memo and not (self.memo.size or self.memo.sha256 or self._wanted.sha256):
            self._note(f"{self._name}: the server did not say how long it is; it may be cut short")

    def leave(self) -> None:
        """Stop before the end: what is there stays, if there is anything."""
        if not self._there:
            self._file.close()
            remove_quietly(self.memo_path)
            remove_quietly(self._part)

    @property
    def _name(self) -> str:
        return self._wanted.path.name

    def _is_whole(self) -> bool:
        return bool(self.memo and self.memo.size and self.memo.size == self._there)

    def _attempt(self) -> None:
        validator = self.memo.validator if self.memo else None
        start = self._there if validator else 0
        with request_file(self._wanted.url, start, validator, self._patience.silence_s) as reply:
            self._prepare_for(reply)
            for block in reply.blocks():
                with os_errors_name(self._part):
                    self._file.write(block)
                if self._there < FIRST_BYTES <= self._there + len(block):
                    self._look_at_beginning(reply.remote)
                self._there += len(block)
                self._furthest = max(self._furthest, self._there)
                self._show(self._there)
                self._check_not_longer(reply.remote)
        if self._there < FIRST_BYTES:
            self._look_at_beginning(reply.remote)
        with os_errors_name(self._part):
            self._file.flush()
        if reply.remote.size is not None and self._there < reply.remote.size:
            missing = reply.remote.size - self._there
            raise Interrupted(f"the server ended {missing:,} bytes before the end of the file")

    def _prepare_for(self, reply: Reply) -> None:
        """Put the file where the reply begins, and remember what it is part of."""
        remote = reply.remote
        memo = _Memo(self._wanted.url, remote.size, remote.validator, remote.sha256)
        if reply.start and self.memo and _differ(memo, self.memo):
            raise WrongPart("the file on the server has changed")
        if reply.start == 0 and self._there:
            self._note(
                f"{self._name}: the server sends the whole file again: it has changed, or no parts "
                f"of it can be had"
            )
        if reply.start != self._there or not reply.start:
            self._begin_anew()
        self.memo = memo
        self._check_room(remote)
        with atomic_write(self.memo_path) as file:
            file.write(json.dumps(asdict(memo)).encode())

    def _begin_anew(self) -> None:
        with os_errors_name(self._part):
            self._file.seek(0)
            self._file.truncate()
        self._there, self.memo = 0, None

    def _after(self, error: Exception, failures: int) -> None:
        """Wait before the next attempt, or give up."""
        patience = self._patience
        asked = error.wait_s if isinstance(error, Interrupted) else None
        if isinstance(error, WrongPart):
            self._begin_anew()
        goes_on = f"{format_bytes(self._there)} of it are here; the same command goes on from there"
        advice = goes_on if self._there else "try again later, or use another mirror (--mirror URL)"
        if isinstance(error, Interrupted) and error.is_unreachable and not self._furthest:
            raise RunError(
                f"{self._wanted.url}: no server can be reached ({error}). Check the network and "
                f"the proxy, or get the file in another way and pass --source."
            ) from error
        if failures >= patience.attempts:
            raise RunError(
                f"{self._wanted.url}: {error}; that was attempt {failures} without progress. "
                f"{_sentence(advice)}"
            ) from error
        wait_s = asked if asked is not None else patience.first_wait_s * 2 ** max(0, failures - 1)
        if wait_s > patience.longest_wait_s:
            raise RunError(
                f"{self._wanted.url}: {error}; the server asks to wait {wait_s:,.0f} s. "
                f"{_sentence(advice)}"
            ) from error
        again = "trying again" if wait_s < 1 else f"trying again in {wait_s:.0f} s"
        self._note(f"{self._name}: {error}; {again}")
        time.sleep(wait_s)

    def _look_at_beginning(self, remote: Remote) -> None:
        """Raise DataError if this cannot be the file; the rest need not be loaded then."""
        with os_errors_name(self._part):
            self._file.flush()
            self._file.seek(0)
            beginning = self._file.read(FIRST_BYTES)
            self._file.seek(0, os.SEEK_END)
        try:
            if _is_web_page(beginning):
                raise DataError(
                    f"{self._wanted.url}: the server sent a web page ({remote.media_type}) instead "
                    f"of the file. Does the network want a login, or is the mirror wrong?"
                )
            self._check_beginning(beginning)
        except DataError:
            self._begin_anew()
            raise

    def _check_beginning(self, beginning: bytes) -> None:
        try:
            self._wanted.check_beginning(beginning)
        except DataError as error:
            raise DataError(f"{self._wanted.url}: {error}") from error

    def _check_room(self, remote: Remote) -> None:
        if remote.size is None:
            return
        with os_errors_name(self._part):
            free = shutil.disk_usage(self._part.parent).free
        missing = remote.size - self._there
        if missing > free:
            raise RunError(
                f"{self._wanted.path}: {format_bytes(missing)} are still to come, but the disk has "
                f"only {format_bytes(free)} free. Free some space or choose another folder (-o)."
            )

    def _check_not_longer(self, remote: Remote) -> None:
        if remote.size is not None and self._there > remote.size:
            self._begin_anew()
            raise DataError(
                f"{self._wanted.url}: more came than the {remote.size:,} bytes that the server "
                f"promised. Try again later, or use another mirror (--mirror URL)."
            )

    def _load_memo(self) -> _Memo | None:
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            memo = _Memo(**json.loads(self.memo_path.read_bytes()))
            kinds = (type(memo.size) in (int, type(None)), isinstance(memo.validator, str))
            return memo if memo.url == self._wanted.url and all(kinds) else None
        return None


def _differ(one: _Memo, other: _Memo) -> bool:
    """Whether two answers are certainly of different files."""
    known = ((one.size, other.size), (one.validator, other.validator), (one.sha256, other.sha256))
    return any(None not in pair and pair[0] != pair[1] for pair in known)


def _check(wanted: Wanted, part: Path, memo: _Memo | None) -> None:
    """Raise DataError unless the finished file has the known hash and the right content."""
    known = wanted.sha256 or (memo.sha256 if memo else None)
    if known is not None:
        digest = hashlib.sha256()
        with os_errors_name(part, "read"), part.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if digest.hexdigest() != known:
            raise DataError(
                f"{wanted.url}: {part.stat().st_size:,} bytes came whose SHA-256 is not the "
                f"expected one ({digest.hexdigest()[:16]}..., not {known[:16]}...). They are "
                f"removed; try again, or use another mirror (--mirror URL)."
            )
    try:
        wanted.check(part)
    except CupyGPTError as error:
        raise DataError(f"{wanted.url} cannot be used and is removed: {error}") from error


def _is_web_page(beginning: bytes) -> bool:
    return (
        beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The part, open for reading and writing; one process at a time."""
    with os_errors_name(part):
        if part.is_symlink() or (part.exists() and not part.is_file()):
            raise ConfigError(f"{part}: there is no plain file under this name. Remove it.")
        file = part.open("r+b" if part.exists() else "w+b")
    with file:
        if not locked(file):
            raise ConfigError(f"{part}: another process is loading this file. Wait until it ends.")
        yield file
