"""The files that a request names, with remarks on what was named twice or left out."""

import os
from collections.abc import Callable
from typing import TypeAlias

from cupygpt.errors import ConfigError, DataError
from cupygpt.texts.look import FileList
from cupygpt.texts.published.sets import PUBLISHED
from cupygpt.texts.reading.find import STDIN, Found, find_files
from cupygpt.texts.request import FILE_PREFIXES, Request
from cupygpt.texts.writing.shard_writer import is_output

Note: TypeAlias = Callable[[str], None]
"""Takes a remark on the texts."""


def find_input(request: Request, note: Note) -> Found:
    """The files to read, each once.

    Raises DataError if there are none, and ConfigError if one of them would be overwritten.
    """
    hint = f"Check the path. Known data sets: {', '.join((*FILE_PREFIXES, *PUBLISHED))}."
    found = find_files(request.what, hint)
    if request.val:
        _add_validation(found, find_files(request.val, "Check the path of --val."))
    note_files(note, FileList.of(found.again), "named twice, and taken once")
    if found.left_out:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.left_out.most_common(5))
        note(
            f"files of other kinds in the folders are left out: {kinds}; name them with a pattern "
            f"to take them"
        )
    folder, name = os.path.realpath(request.output), request.file_prefix
    for path in found.files:
        if is_output(os.path.basename(path), name) and (  # noqa: PTH119 (fast)
            os.path.realpath(os.path.dirname(path)) == folder  # noqa: PTH120
        ):
            raise ConfigError(f"{path} would be overwritten. Choose another --name or -o.")
    return found


def _add_validation(found: Found, val: Found) -> None:
    """Put the files for validation behind the others, if they are among them."""
    places = {os.path.realpath(path) for path in val.files}
    train = [path for path in found.files if path == STDIN or os.path.realpath(path) not in places]
    if not train:
        raise DataError("--val names all files; nothing is left to train on.")
    if STDIN in val.files:
        raise DataError("--val -: standard input can only be text for training.")
    found.files[:] = [*train, *val.files]
    found.for_validation = frozenset(val.files)


def note_files(note: Note, files: FileList, what: str) -> None:
    """A remark on some files, if there are any."""
    if files.count:
        note(f"{files.count:,} file{'s' * (files.count > 1)} {what}: {files}")
