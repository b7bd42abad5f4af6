"""How far the writing of token files has come, so that it can go on after it was stopped."""

import contextlib
import json
from pathlib import Path
from typing import Any, TypeAlias

from cupygpt.files import PARTIAL_SUFFIX, atomic_write, remove_file, sync_folder

FORMAT = "cupygpt prepare"
VERSION = 2

State: TypeAlias = dict[str, Any]


def journal_path(folder: Path, name: str) -> Path:
    """Where the journal of the data set `name` lies."""
    return folder / f"{name}_prepare.json{PARTIAL_SUFFIX}"


class Journal:
    """A small file beside the partial token files of the data set `name`.

    `key` identifies texts, tokenizer and settings: a journal of others counts for nothing, nor does
    a damaged one. `saved` says whether there is something to go on from.
    """

    def __init__(self, folder: Path, name: str, key: str) -> None:
        self.path = journal_path(folder, name)
        self._key = key
        self.saved = False

    def load(self) -> State | None:
        """The state that was saved last; None if there is none for this key."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            values = json.loads(self.path.read_bytes())
            same = [values["format"], values["version"], values["key"]]
            if same == [FORMAT, VERSION, self._key]:
                state: State = values["state"]
                self.saved = True
                return state
        return None

    def save(self, state: State) -> None:
        """Write a state, when all that it speaks of is on the disk. Raises RunError."""
        values = {"format": FORMAT, "version": VERSION, "key": self._key, "state": state}
        with atomic_write(self.path) as file:
            file.write(json.dumps(values).encode())
        self.saved = True

    def remove(self) -> None:
        """Forget the state. Raises RunError if that is not possible."""
        if self.path.exists():
            remove_file(self.path)
            sync_folder(self.path.parent)
        self.saved = False
