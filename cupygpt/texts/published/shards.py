"""Published token files become a data set as they are: each is checked, and gets a record."""

import hashlib
import os
import shutil
from pathlib import Path

from cupygpt.console.work_bar import WorkBar
from cupygpt.data.token_files import num_tokens, open_shards, record_path
from cupygpt.data.token_record import Origin, put_in_place, write_token_records
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.errors import DataError, TokenizerError
from cupygpt.files import atomic_write, is_same_file
from cupygpt.texts.find_input import Note
from cupygpt.texts.published.files import Files, get_files
from cupygpt.texts.published.sets import PUBLISHED
from cupygpt.texts.request import Request

COPY_BLOCK_BYTES = 2**22


def published_shards(request: Request, note: Note, bar: WorkBar) -> Files:
    """The token files of a published data set, in the output folder, with their records.

    Those in the folder `source` are linked, or copied if that is not possible.
    """
    name, folder = request.what[0], request.output
    files = get_files(
        name, request.files, folder, note, bar, source=request.source, mirror=request.mirror
    )
    if request.source is not None:
        files = Files(
            [_take(path, folder) for path in files.train],
            [_take(path, folder) for path in files.val],
        )
    _write_records(name, files, folder, note, bar)
    pattern = Path(PUBLISHED[name].train).name.replace("{:06}", "*")
    others = {*folder.glob(pattern)} - {*files.train}
    if others:
        note(
            f"{len(others)} more training file{'s' * (len(others) > 1)} of {name} "
            f"{'are' if len(others) > 1 else 'is'} in {folder}; {pattern} takes all of them"
        )
    return files


def tokens_of(paths: list[Path]) -> int:
    """How many tokens the files hold."""
    return sum(num_tokens(open_shards(str(path))) for path in paths)


def _take(path: Path, folder: Path) -> Path:
    """The file in `folder`, linked or copied there if it lies elsewhere."""
    target = folder / path.name
    if is_same_file(path, target):
        return target
    if target.exists():
        raise DataError(
            f"{target}: there is another file of this name, not {path}. Remove it, or choose "
            f"another folder (-o)."
        )
    try:
        os.link(os.path.realpath(path), target)
    except OSError:  # another disk, or a file system without links
        with atomic_write(target) as copy, path.open("rb") as file:
            shutil.copyfileobj(file, copy, COPY_BLOCK_BYTES)
    return target


def _write_records(name: str, files: Files, folder: Path, note: Note, bar: WorkBar) -> None:
    parts = {
        "train": [path for path in files.train if not record_path(path).exists()],
        "val": [path for path in files.val if not record_path(path).exists()],
    }
    if not any(parts.values()):
        return
    try:
        tokenizer = load_tokenizer("gpt2")
    except TokenizerError as error:
        note(f"no records beside the files: {error} train uses them without")
        return
    repository = PUBLISHED[name].repository
    origin = Origin(
        [repository], 1, hashlib.sha256(repository.encode()).hexdigest(), "the published files"
    )
    size = sum(path.stat().st_size for paths in parts.values() for path in paths)
    with bar.stage("writing records", size) as show:
        done = 0
        for part, paths in parts.items():
            for path in paths:
                places = {part: [(path, path)]}
                put_in_place(write_token_records(folder, name, places, tokenizer, origin))
                done += path.stat().st_size
                show(done)
