"""Published texts become a request like one for a person's own files."""

import contextlib
from dataclasses import replace

from cupygpt.console.work_bar import WorkBar
from cupygpt.files import os_errors_name
from cupygpt.texts.find_input import Note
from cupygpt.texts.published.files import get_files
from cupygpt.texts.published.sets import PARQUET, PUBLISHED
from cupygpt.texts.request import Request

DOWNLOADS = "downloads"
"""The folder in the output folder that holds texts from the network."""


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
    is_text = published.kind != PARQUET
    return replace(
        request,
        what=[str(path) for path in files.train],
        val=[str(path) for path in files.val],
        name=request.name or name,
        field=None if is_text else request.field or "text",
        split_at_endoftext=is_text,
        source=None,
        mirror=None,
        files=None,
    )
