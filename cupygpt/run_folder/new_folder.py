"""The folder of a new run: made and locked; if the start fails, nothing of it stays."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cupygpt.errors import ConfigError
from cupygpt.files import PARTIAL_SUFFIX, is_same_file, os_errors_name, remove_file, remove_quietly
from cupygpt.run_folder.folder import RUNS, check_holds_no_run
from cupygpt.run_folder.lock import FolderLock
from cupygpt.run_folder.log import MAIN_LOG, METRICS
from cupygpt.run_folder.record import RECORD, TOKENIZER_COPY

_CHECKPOINTS = (
    "DONE_????????",  # first: nothing vouches for a half-deleted set
    "model_????????.bin",
    "state_????????_?????.bin",
)
_OTHERS = (RECORD, MAIN_LOG, METRICS, TOKENIZER_COPY, f"{TOKENIZER_COPY}.json")
_PARTIAL = tuple(name + PARTIAL_SUFFIX for name in (*_CHECKPOINTS, *_OTHERS))


_ASIDE = ".old"


def _aside(path: Path) -> Path:
    return path.with_name(path.name + _ASIDE)


class NewFolder:
    """The locked folder of a new run, `path`; used as a context manager around the whole run.

    With `overwrite` the folder may hold a run, which stays until `claim`; with `may_restart` one
    that has saved no checkpoint, of which `claim` leaves the model files. Before `claim`, an
    exception that leaves the block removes what the start has made: the folder, if it was not there
    before, and files that match the patterns in `made_at_start`. Leaving the block frees the lock.
    The file `keep` always stays: the run starts from it.
    Raises ConfigError if the folder cannot be written to, is in use, or holds a run.
    """

    def __init__(
        self,
        out: str | None,
        *,
        overwrite: bool,
        may_restart: bool = False,
        made_at_start: Sequence[str] = (),
        keep: Path | None = None,
    ) -> None:
        self._made_at_start, self._keep = made_at_start, keep
        self._overwrite, self._may_restart = overwrite, may_restart
        self._new_folders: list[Path] = []
        self._claimed = False
        try:
            self.path = self._make(Path(out)) if out else self._make_named_by_time()
            self._before = {path.name for path in self.path.iterdir()}
        except OSError as error:
            self._remove_folders()
            raise ConfigError(
                f"-o {out or RUNS}: not writable ({error.strerror or error}); choose another "
                f"folder."
            ) from error
        self.lock = self._lock()
        self._set_aside: list[Path] = []
        if overwrite:
            self._set_old_files_aside()

    def claim(self) -> None:
        """The start has succeeded: remove what another run left here; the folder stays from now on.

        Raises RunError if a file cannot be removed.
        """
        self._claimed = True
        for path in self._set_aside:
            remove_file(_aside(path))
        # Without --overwrite there is no checkpoint. A model file is then somebody else's.
        checkpoints = _CHECKPOINTS if self._overwrite else ()
        for pattern in (*checkpoints, *_OTHERS, *_PARTIAL):
            for path in self.path.glob(pattern):
                if not is_same_file(path, self._keep):
                    remove_file(path)

    def __enter__(self) -> "NewFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._claimed or error is None:
            self.lock.release()
            return
        for path in self._set_aside:
            with contextlib.suppress(OSError):
                _aside(path).replace(path)
        for pattern in (*self._made_at_start, *(p + PARTIAL_SUFFIX for p in self._made_at_start)):
            for path in self.path.glob(pattern):
                if path.name not in self._before:
                    remove_quietly(path)
        self.lock.release()
        self._remove_folders()

    def _set_old_files_aside(self) -> None:
        """The start will write files of these names; if it fails, the old run has its own again."""
        for pattern in self._made_at_start:
            for path in sorted(self.path.glob(pattern)):
                if not path.name.endswith(_ASIDE):
                    with os_errors_name(path, "renamed"):
                        path.replace(_aside(path))
                    self._set_aside.append(path)

    def _lock(self) -> FolderLock:
        try:
            lock = FolderLock(self.path)
        except ConfigError:
            self._remove_folders()
            raise
        try:
            if not self._overwrite:
                check_holds_no_run(self.path, may_restart=self._may_restart)
        except BaseException:
            lock.release()
            self._remove_folders()
            raise
        return lock

    def _make(self, folder: Path) -> Path:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"-o {folder}: a file of that name exists; choose another folder.")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was faster
                path.mkdir()
                self._new_folders.append(path)
        return folder

    def _make_named_by_time(self) -> Path:
        self._make(RUNS)
        folder = RUNS / time.strftime("%Y%m%d-%H%M%S")
        while True:
            try:
                folder.mkdir()
            except FileExistsError:
                folder = folder.with_name(folder.name + "x")
                continue
            self._new_folders.append(folder)
            return folder

    def _remove_folders(self) -> None:
        """Remove the folders that were made here, as far as they are empty."""
        for path in reversed(self._new_folders):
            with contextlib.suppress(OSError):
                path.rmdir()
