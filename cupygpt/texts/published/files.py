"""The files of published data sets: from the network, or from a folder; checked in both cases."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cupygpt.config import GPT2_VOCAB
from cupygpt.console.figures import format_bytes
from cupygpt.console.work_bar import WorkBar
from cupygpt.data.token_files import check_all_ids, open_shards, record_path
from cupygpt.errors import ConfigError, DataError, RunError
from cupygpt.files import FileKind, os_errors_name
from cupygpt.texts.published.sets import PARQUET, PUBLISHED, TEXT, TOKENS, Published
from cupygpt.web.download import FIRST_BYTES, SUFFIX, Note, Wanted, download
from cupygpt.web.transfer import check_address

HOST = "https://huggingface.co"
HOST_VARIABLE = "HF_ENDPOINT"
"""Another server with the same paths, as the programs of Hugging Face know it."""


@dataclass(frozen=True)
class Files:
    """The files of a data set on this disk."""

    train: list[Path]
    val: list[Path]


def get_files(
    name: str,
    count: int | None,
    folder: Path,
    note: Note,
    bar: WorkBar,
    *,
    source: Path | None = None,
    mirror: str | None = None,
) -> Files:
    """The files of the data set `name`: those in the folder `source`, else loaded to `folder`.

    `count` is the number of training files. `mirror` is another server with the paths of Hugging
    Face. Raises ConfigError for what cannot be asked, DataError for files that are missing or are
    not what they should be, and RunError if the network or the disk gives up.
    """
    published = PUBLISHED[name]
    if count is not None and not 1 <= count <= published.num_files:
        raise ConfigError(
            f"-n {count}: {name} has {published.num_files} training files; from 1 to "
            f"{published.num_files} can be asked for."
        )
    if source is not None:
        return _files_in(source, name, count)
    host, flag = mirror, "--mirror"
    if host is None:
        host, flag = os.environ.get(HOST_VARIABLE) or HOST, HOST_VARIABLE
    check_address(host, flag)
    train, val = published.names(count or published.usual or published.num_files)
    _check_room(name, folder, train, val, note)
    done = 0
    with bar.stage(f"downloading {name}", _bytes_of(published, train, val)) as show:
        for file in [*val, *train]:
            path = folder / Path(file).name
            if path.exists():
                _check_file_of_earlier_run(path, published.kind)
            else:
                wanted = Wanted(
                    published.url(host, file),
                    path,
                    check_beginning=_CHECKS[published.kind][0],
                    check=_CHECKS[published.kind][1],
                )
                download(wanted, note, _shown_after(done, show))
            done += path.stat().st_size
            show(done)
    return Files(
        [folder / Path(file).name for file in train], [folder / Path(file).name for file in val]
    )


def _shown_after(done: int, show: Callable[[int], None]) -> Callable[[int], None]:
    return lambda of_file: show(done + of_file)


def _bytes_of(published: Published, train: list[str], val: list[str]) -> int:
    return published.file_bytes * len(train) + published.val_bytes * len(val)


def _check_room(name: str, folder: Path, train: list[str], val: list[str], note: Note) -> None:
    """Say how much comes. Raises RunError if the disk is too small for it."""
    published = PUBLISHED[name]
    there = 0
    for file in (*train, *val):
        path = folder / Path(file).name
        part = path.with_name(path.name + SUFFIX)
        there += next((one.stat().st_size for one in (path, part) if one.exists()), 0)
    size = _bytes_of(published, train, val)
    with os_errors_name(folder):
        free = shutil.disk_usage(folder).free
    missing = max(0, size - there)
    here = f", of which {format_bytes(there)} are here" if there else ""
    note(
        f"{name}: {len(train) + len(val)} files of {published.repository}, about "
        f"{format_bytes(size)}{here}; the disk has {format_bytes(free)} free"
    )
    needed = missing + published.token_bytes * len(train)
    if missing and needed > free:
        tokens = " with the tokens that are made of it" if published.token_bytes else ""
        fewer = " take fewer files (-n)," if len(train) > 1 else ""
        raise RunError(
            f"{folder}: about {format_bytes(needed)} are needed{tokens}, but only "
            f"{format_bytes(free)} are free. Free some space,{fewer} or choose another folder (-o)."
        )


def _files_in(source: Path, name: str, count: int | None) -> Files:
    """The files of a data set in a folder, under their published paths or side by side."""
    published = PUBLISHED[name]
    if not source.is_dir():
        raise ConfigError(
            f"--source {source}: not a folder. It must hold the files of {published.repository}."
        )

    def find(names: list[str]) -> list[Path]:
        places = [(source / one, source / Path(one).name) for one in names]
        return [next((path for path in place if path.is_file()), place[1]) for place in places]

    train, val = (find(names) for names in published.names(count or published.num_files))
    if count is None:
        train = [path for path in train if path.is_file()] or train[:1]
    missing = [path for path in (*val, *train) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"--source {source}: {missing[0].name}{more} of {name} ({published.repository}) is not "
            f"there. Copy it there, or leave --source out to download."
        )
    for path in (*val, *train):
        _check_file(path, published.kind)
    return Files(train, val)


def _check_file_of_earlier_run(path: Path, kind: str) -> None:
    try:
        _check_file(path, kind)
    except DataError as error:
        raise DataError(f"{error} Remove this file to get it again.") from error


def _check_file(path: Path, kind: str) -> None:
    """Raise DataError for a file that is here and cannot be what it should be."""
    check_beginning, check = _CHECKS[kind]
    with os_errors_name(path, "read"), path.open("rb") as file:
        beginning = file.read(FIRST_BYTES)
    try:
        check_beginning(beginning)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if kind != TOKENS or not record_path(path).exists():  # a record is written after a check
        check(path)


def _check_shard(path: Path) -> None:
    """Raise DataError unless this is a token file as its header says, with GPT-2's ids only."""
    [shard] = open_shards(str(path))
    check_all_ids(shard, GPT2_VOCAB)


def _check_shard_beginning(beginning: bytes) -> None:
    magic = int.from_bytes(beginning[:4], "little")
    _check_no_pointer(beginning)
    if magic != FileKind.TOKENS.magic:
        raise DataError(
            f"this is not a GPT-2 token file (magic number {magic}, expected "
            f"{FileKind.TOKENS.magic}). Use another mirror, or get the files in another way and "
            f"pass --source."
        )


def _check_no_pointer(beginning: bytes) -> None:
    if beginning.startswith(b"version https://git-lfs"):
        raise DataError(
            "this is a pointer of Git LFS, not the file. Get the files with: git lfs pull"
        )


def _check_parquet_beginning(beginning: bytes) -> None:
    _check_no_pointer(beginning)
    if not beginning.startswith(b"PAR1"):
        raise DataError("this is not a parquet file. Use another mirror, or pass --source.")


def _check_parquet(path: Path) -> None:
    with os_errors_name(path, "read"), path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        if file.read(4) != b"PAR1":
            raise DataError(f"{path}: this parquet file is cut short. Get it again.")


_CHECKS: dict[str, tuple[Callable[[bytes], None], Callable[[Path], None]]] = {
    TOKENS: (_check_shard_beginning, _check_shard),
    TEXT: (_check_no_pointer, lambda _: None),
    PARQUET: (_check_parquet_beginning, _check_parquet),
}
"""What the beginning and the whole of a file must look like."""
