"""Published texts become a request like one for a person's own files."""

import contextlib
from dataclasses import replace
from pathlib import Path

from cupygpt.console.figures import format_bytes
from cupygpt.console.work_bar import WorkBar
from cupygpt.files import os_errors_name
from cupygpt.texts.find_input import Note
from cupygpt.texts.published.files import get_files
from cupygpt.texts.published.sets import PARQUET, PUBLISHED, TEXT
from cupygpt.texts.request import Request

DOWNLOADS = "downloads"
"""The folder in the output folder that holds texts from the network."""

SIZE_TOLERANCE = 0.02
"""Sizes are known so well."""


def with_published_texts(request: Request, note: Note, bar: WorkBar) -> Request:
    """The request for the texts that `request` names, which are here or are loaded now."""
    [name] = request.what
    published, folder = PUBLISHED[name], request.output / DOWNLOADS
    if request.source is None:
        with os_errors_name(folder):
            folder.mkdir(exist_ok=True)
    try:
        files = get_files(
            name, request.files, folder, note, bar, source=request.source, mirror=request.mirror
        )
    except BaseException:
        if request.source is None:
            with contextlib.suppress(OSError):  # something of the texts is in it
                folder.rmdir()
        raise
    if request.source is None:
        note(f"the texts stay in {folder}; they are not needed once the tokens are written")
    if published.kind == TEXT:
        for path, known in (
            *((path, published.file_bytes) for path in files.train),
            *((path, published.val_bytes) for path in files.val),
        ):
            _doubt_size(path, known, note)
    return replace(
        request,
        what=[str(path) for path in files.train],
        val=[str(path) for path in files.val],
        name=request.name or name,
        field=request.field or "text" if published.kind == PARQUET else None,
        split_at_endoftext=published.kind == TEXT,
        source=None,
        mirror=None,
        files=None,
    )


def _doubt_size(path: Path, known: int, note: Note) -> None:
    """Say if a text, which does not show where it should end, has not the size that is known."""
    size = path.stat().st_size
    if abs(size - known) > SIZE_TOLERANCE * known:
        note(
            f"{path} has {format_bytes(size)}, but about {format_bytes(known)} were published: is "
            f"it cut short?"
        )
